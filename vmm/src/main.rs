//! The `splitring` command line.

fn main() {}
