//! What an operator can get wrong, each with one clear message and its exit code. Everything is tried on the real program; most of it
//! needs no KVM that can run a guest.

mod files;
mod host;
mod images;
mod paths;
mod table;
#[path = "../../../tests/tiny/mod.rs"]
mod tiny;
