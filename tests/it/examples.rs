//! The examples at a small size, with the assertions that they make themselves.

#![allow(dead_code, reason = "an example's main is not for the test")]

use std::path::Path;

use crate::harness::PROGRAM;

#[path = "../../examples/chat.rs"]
mod chat;
#[path = "../../examples/flash_sale.rs"]
mod flash_sale;
#[path = "../../examples/logs.rs"]
mod logs;
#[path = "../../examples/orders.rs"]
mod orders;
#[path = "../../examples/registration.rs"]
mod registration;

#[test]
fn registration_answers_before_the_messages_are_sent() {
    registration::run(Path::new(PROGRAM), 24).unwrap().check();
}

#[test]
fn orders_are_booked_once_through_kills() {
    orders::run(Path::new(PROGRAM), 400).unwrap().check();
}

#[test]
fn flash_sale_sells_what_there_is_and_tells_the_rest() {
    flash_sale::run(Path::new(PROGRAM), 5_000, 100).unwrap().check();
}

#[test]
fn log_lines_are_routed_and_counted() {
    logs::run(Path::new(PROGRAM), 20_000).unwrap().check();
}

#[test]
fn chat_is_read_in_order_on_return() {
    chat::run(Path::new(PROGRAM), 60).unwrap().check();
}
