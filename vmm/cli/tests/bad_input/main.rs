//! Operator errors, each with one clear message and its exit code. All of them use the real
//! program; most need no KVM that can run a guest.

mod files;
mod host;
mod images;
mod paths;
mod table;
