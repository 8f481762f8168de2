//! A stock guest's network device: transfers arrive complete, or their losses are counted, whatever
//! the offloads, queues, sizes and disturbances; on TAP and on passt, with and without root.

mod endpoints;
mod errors;
mod floods;
mod frames;
mod links;
mod passt;
mod rates;
mod transfers;
mod unprivileged;
mod vhost;
