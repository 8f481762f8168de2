//! A stock guest's network card: what is transferred arrives whole, or is counted, whatever the offloads, queues, sizes
//! and troubles; on TAP and on passt, with root's rights and with none.
//!
//! Run by `cargo xtask test`, which knows where a stock kernel can run.

mod ends;
mod errors;
mod floods;
mod frames;
mod live;
mod passt;
mod rates;
mod transfers;
mod unprivileged;
