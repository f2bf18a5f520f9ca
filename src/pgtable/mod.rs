//! The page-table engine: one walker over formats that are small files of constants.

mod page_size;

pub use page_size::{PageSize, PageSizes};
