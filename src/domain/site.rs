//! Where paging domains order what hardware sees.

use crate::sync::site::sites;

sites! {
    MAPPED_ONE = "domain: one leaf, before map returns";
    MAPPED = "domain: leaves, before map returns";
    REQUEST = "domain: the invalidation";
    WAIT = "domain: the wait for the invalidation, before memory and tables are given back";
}
