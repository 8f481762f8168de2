//! The running program on a terminal or on pipes: its console, its terminal, its standard streams.

mod console;
mod pipes;
mod session;
mod terminal;
