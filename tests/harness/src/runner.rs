//! Tests that can say *ignored, and this is why*.
//!
//! ```no_run
//! use iommu_harness::{Machine, QemuX86, Suite, TestResult, X86Options};
//!
//! fn starts() -> TestResult {
//!     let machine = QemuX86::start(&X86Options::new())?; // missing QEMU: ignored, with the reason
//!     assert_eq!(machine.platform().frames_in_use(), 0);
//!     Ok(())
//! }
//!
//! fn main() {
//!     let mut suite = Suite::from_arguments();
//!     suite.test("starts", starts);
//!     suite.run()
//! }
//! ```

use std::env;
use std::fmt::Display;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::error::Error;

/// Name of the environment variable that turns a missing QEMU into a failure when it is `1`.
pub const REQUIRE_QEMU: &str = "IOMMU_REQUIRE_QEMU";

/// What a test returns. Any error converts by `?`.
pub type TestResult<T = ()> = Result<T, TestError>;

/// Why a test did not pass.
#[derive(Debug)]
pub enum TestError {
    /// It could not run here, for this reason.
    Unavailable(String),
    /// It failed.
    Failed(String),
}

impl TestError {
    /// A failure with a message.
    pub fn failed(message: impl Display) -> Self {
        Self::Failed(message.to_string())
    }

    /// A reason not to run this test here.
    pub fn unavailable(reason: impl Display) -> Self {
        Self::Unavailable(reason.to_string())
    }
}

impl<E: std::error::Error + 'static> From<E> for TestError {
    fn from(error: E) -> Self {
        let any: &(dyn std::error::Error + 'static) = &error;
        match any.downcast_ref::<Error>() {
            Some(unavailable @ Error::Unavailable { .. }) => Self::Unavailable(unavailable.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// A list of tests, run like libtest runs them and with its command line.
pub struct Suite {
    arguments: Arguments,
    trials: Vec<Trial>,
}

impl Suite {
    /// A suite that takes its filter and its options from the command line.
    pub fn from_arguments() -> Self {
        Self { arguments: Arguments::from_args(), trials: Vec::new() }
    }

    /// Adds a test. It runs on a thread of its own; a panic is a failure.
    pub fn test(&mut self, name: impl Into<String>, test: impl FnOnce() -> TestResult + Send + 'static) {
        self.trials.push(Trial::ignorable_test(name, move || conclude(test(), is_required())));
    }

    /// Runs the tests and ends the program with their status.
    pub fn run(self) -> ! {
        libtest_mimic::run(&self.arguments, self.trials).exit()
    }
}

/// What it means that a machine is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Ignored,
    Failure,
}

fn is_required() -> Missing {
    let required = env::var_os(REQUIRE_QEMU).is_some_and(|value| value == "1");
    if required { Missing::Failure } else { Missing::Ignored }
}

fn conclude(result: TestResult, missing: Missing) -> Result<Completion, Failed> {
    match result {
        Ok(()) => Ok(Completion::Completed),
        Err(TestError::Failed(message)) => Err(message.into()),
        Err(TestError::Unavailable(reason)) => match missing {
            Missing::Failure => Err(format!("{reason} ({REQUIRE_QEMU}=1)").into()),
            Missing::Ignored => Ok(Completion::ignored_with(reason)),
        },
    }
}

#[cfg(test)]
mod tests {
    use libtest_mimic::Completion;

    use super::{Missing, TestResult, conclude};
    use crate::error::Error;

    #[test]
    fn what_is_missing_is_ignored_unless_it_is_required() {
        let unavailable =
            || -> TestResult { Err(Error::Unavailable { what: "no qemu".to_owned(), remedy: "install it" })? };
        let ignored = conclude(unavailable(), Missing::Ignored);
        assert!(
            matches!(ignored, Ok(Completion::Ignored { reason: Some(text) }) if text == "no qemu; try: install it")
        );
        assert!(conclude(unavailable(), Missing::Failure).is_err());
        assert!(conclude(Err(Error::Disconnected.into()), Missing::Ignored).is_err());
        assert!(conclude(Err(iommu::Error::NoMemory.into()), Missing::Ignored).is_err());
    }
}
