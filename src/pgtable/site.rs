//! Where page tables order what a walker sees. Cleans are for walkers that do not snoop.

use crate::sync::site::sites;

sites! {
    ROOT_CLEAN = "page table: clean of a new root";
    TABLE_CLEAN = "page table: clean of a new table, before the link to it";
    TABLE = "page table: zeros of a new table, before the link to it";
    LINK_CLEAN = "page table: clean of a link to a new table";
    MAP_CLEAN = "page table: clean of leaves";
    PREPARED_CLEAN = "page table: clean of a prepared table, before the link to it";
    PREPARED = "page table: leaves of prepared tables, before the links to them";
    PREPARED_LINK_CLEAN = "page table: clean of links to prepared tables";
    UNMAP_CLEAN = "page table: clean of leaves that were cleared";
    UNMAP_LARGE_CLEAN = "page table: clean of a large page that was cleared";
    UNMAP_TABLES_CLEAN = "page table: clean of links and large pages that were cleared";
    PROTECT_CLEAN = "page table: clean of leaves whose permission changed";
    DIRTY_CLEAN = "page table: clean of leaves whose dirty bit was cleared";
    SPLIT_TABLE_CLEAN = "page table: clean of a table that replaces a large page";
    SPLIT_TABLE = "page table: leaves that replace a large page, before the link to them";
    SPLIT_CLEAN = "page table: clean of links that replace large pages";
}
