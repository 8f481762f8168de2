//! GRUB's script language, as far as configuration files use it.
//!
//! "GNU GRUB Manual 2.12", sections 6 and 16, and `grub-core/script` for what the manual leaves
//! open. A script is parsed into commands ([`parse`]), which [`eval`] runs within limits. What it
//! needs of the disk it asks through [`Host`].

mod commands;
mod eval;
mod lex;
mod parse;
mod test;

pub(crate) use eval::{Boot, Host, Item, Machine, Named, SearchKey, Stop};

#[cfg(test)]
mod tests;
