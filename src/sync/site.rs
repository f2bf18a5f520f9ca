//! Sites: the places at which a driver orders what hardware sees.
//!
//! Every barrier, cache clean, invalidation request and wait on the way to hardware names itself by a
//! [`Site`], declared in the list of its module. In the usual build a site has neither size nor code.
//! Under `--cfg order_mutants` a test chooses one that is left out (`skip`), and must notice.

#[cfg(order_mutants)]
pub use mutants::{reached, skip};

use crate::platform::Platform;

/// The name of one barrier, one cache clean, one invalidation request or one wait for hardware.
///
/// Without it the code is a *mutant*: something that hardware may do goes wrong. Names are unique and
/// say what is ordered.
///
/// ```
/// use iommu::platform::{Arena, Frame};
/// use iommu::sync::Site;
///
/// const LEAVES: Site = Site::new("leaves before map returns");
/// let arena = Arena::new(Box::leak(vec![Frame::ZERO; 2].into_boxed_slice()))?;
/// LEAVES.publish(&arena);
/// assert!(!LEAVES.is_skipped());
/// # Ok::<(), iommu::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Site {
    #[cfg(order_mutants)]
    name: &'static str,
}

impl Site {
    /// A site of this name, which only builds with `--cfg order_mutants` keep.
    pub const fn new(name: &'static str) -> Self {
        #[cfg(not(order_mutants))]
        let _ = name;
        Self {
            #[cfg(order_mutants)]
            name,
        }
    }

    /// Whether what stands here is to be left out, in builds of mutants; else `false`, known to the
    /// compiler. A request that is left out is not made, a wait succeeds at once.
    #[inline(always)]
    pub fn is_skipped(self) -> bool {
        #[cfg(order_mutants)]
        return mutants::reach(self);
        #[cfg(not(order_mutants))]
        false
    }

    /// [`Platform::publish`], here.
    #[inline(always)]
    pub fn publish<P: Platform>(self, platform: &P) {
        if !self.is_skipped() {
            platform.publish();
        }
    }

    /// What it orders.
    #[cfg(order_mutants)]
    pub const fn name(self) -> &'static str {
        self.name
    }
}

/// Declares sites, and `SITES`, the list of them that tests of mutants walk. A site that is declared
/// and not used is a warning of the compiler.
macro_rules! sites {
    ($($site:ident = $name:literal;)*) => {
        $(
            #[doc = $name]
            pub(crate) const $site: $crate::sync::Site = $crate::sync::Site::new($name);
        )*

        /// All sites of this module.
        #[cfg(order_mutants)]
        pub const SITES: &[$crate::sync::Site] = &[$($site),*];
    };
}
pub(crate) use sites;

/// One site of the program is left out at a time, on all threads.
#[cfg(order_mutants)]
mod mutants {
    use super::Site;

    /// Sites that one program can reach.
    const MAX_SITES: usize = 512;

    struct State {
        skipped: Option<Site>,
        reached: heapless::Vec<Site, MAX_SITES>,
    }

    static STATE: spin::Mutex<State> = spin::Mutex::new(State { skipped: None, reached: heapless::Vec::new() });

    /// Leaves out what stands at `site` from now on, or nothing.
    pub fn skip(site: Option<Site>) {
        STATE.lock().skipped = site;
    }

    /// The sites that were reached since this was asked last, each once.
    pub fn reached() -> heapless::Vec<Site, MAX_SITES> {
        core::mem::take(&mut STATE.lock().reached)
    }

    pub(super) fn reach(site: Site) -> bool {
        let mut state = STATE.lock();
        if !state.reached.contains(&site) {
            let _ = state.reached.push(site);
        }
        state.skipped == Some(site)
    }
}

#[cfg(all(test, order_mutants))]
mod tests {
    use super::{Site, reached, skip};

    #[test]
    fn one_site_is_left_out_and_what_is_reached_is_known() {
        const FIRST: Site = Site::new("test: first");
        const SECOND: Site = Site::new("test: second");
        skip(Some(FIRST));
        assert!(FIRST.is_skipped() && !SECOND.is_skipped() && FIRST.is_skipped());
        skip(None);
        assert!(!FIRST.is_skipped());
        let mine = reached().iter().filter(|site| site.name().starts_with("test: ")).count();
        assert_eq!(mine, 2);
    }
}
