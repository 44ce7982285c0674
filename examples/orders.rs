//! Decoupling: orders are taken while the stock service is down, and the stock is right in the end, through kills of the shop, of
//! the stock service and of the broker.
//!
//! A queue delivers at least once. So the stock service remembers which orders it has booked, in the same place as the stock.
//!
//! `cargo run --release --example orders`

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use ringmain_client::wire::queue::QueueConfig;
use ringmain_client::{Client, Outgoing, Producer, ProducerConfig, QueueError};

mod common;
use common::{Broker, Result, consumer, create_queue, print_table, row, text};

const QUIET: Duration = Duration::from_millis(500);

/// The stock service's own database: it survives the service.
#[derive(Default)]
struct Stock {
    booked: BTreeSet<u64>,
    sold: u64,
    /// Orders that came more than once, and were booked once.
    repeated: u64,
}

pub struct Outcome {
    pub orders: u64,
    /// Accepted while nobody could book them.
    pub while_down: u64,
    pub booked: u64,
    pub sold: u64,
    pub expected: u64,
    pub repeated: u64,
    pub kills: u64,
}

/// The shop opens.
fn open_shop(client: &Client) -> Result<Producer> {
    Ok(client.queue_producer("orders", ProducerConfig::default())?)
}

/// It takes orders `from..to`, and closes; an order is accepted when it is safe. Each is for 1 to 5 pieces.
fn take_orders(mut shop: Producer, from: u64, to: u64) -> Result<()> {
    for order in from..to {
        shop.send(Outgoing::new(format!("{order} {}", pieces(order)).as_bytes()).record())?;
    }
    Ok(shop.close()?)
}

fn pieces(order: u64) -> u64 {
    order % 5 + 1
}

/// The stock service books what comes, until nothing does, or until it dies after so many orders, before it acknowledges the
/// last of them.
fn book(client: &Client, stock: &mut Stock, dies_after: Option<usize>) -> Result<()> {
    let mut queue = consumer(client, "orders", 50)?;
    let mut count = 0;
    loop {
        let message = match queue.recv(QUIET) {
            Ok(Some(message)) => message,
            Ok(None) => break,
            Err(QueueError::Broker { error, .. }) if error.code.is_retriable() => continue,
            Err(error) => return Err(error.into()),
        };
        let order = text(&message);
        let (number, pieces) = order.split_once(' ').ok_or("an order has a number and pieces")?;
        if stock.booked.insert(number.parse()?) {
            stock.sold += pieces.parse::<u64>()?;
        } else {
            stock.repeated += 1;
        }
        count += 1;
        if dies_after == Some(count) {
            return Ok(());
        }
        queue.ack(&message);
    }
    queue.close()?;
    Ok(())
}

pub fn run(program: &Path, orders: u64) -> Result<Outcome> {
    let mut broker = Broker::start(program)?;
    let client = broker.client()?;
    create_queue(&client, "orders", "", QueueConfig { delivery_limit: None, ..QueueConfig::default() })?;
    let mut stock = Stock::default();
    let quarter = orders / 4;

    // The stock service is down; orders are taken all the same.
    take_orders(open_shop(&client)?, 0, quarter)?;
    let while_down = client.describe_queue("orders")?.iter().map(|state| state.ready).sum();
    // It comes back, and dies over an order that it has booked and not acknowledged.
    book(&client, &mut stock, Some(quarter as usize / 2))?;
    // The broker dies while orders are taken.
    let shop = open_shop(&client)?;
    let shop = std::thread::spawn(move || take_orders(shop, quarter, 3 * quarter));
    broker.kill_and_restart()?;
    shop.join().unwrap_or_else(|_| Err("the shop panicked".into()))?;
    book(&client, &mut stock, Some(quarter as usize))?;
    // The shop dies before it knows which of its last orders were taken, and sends them again.
    take_orders(open_shop(&client)?, 3 * quarter, 3 * quarter + 10)?;
    take_orders(open_shop(&client)?, 3 * quarter, orders)?;
    broker.kill_and_restart()?;
    book(&client, &mut stock, None)?;

    let expected = (0..orders).map(pieces).sum();
    let Stock { booked, sold, repeated } = stock;
    Ok(Outcome { orders, while_down, booked: booked.len() as u64, sold, expected, repeated, kills: 5 })
}

impl Outcome {
    /// No order was lost, none booked twice.
    pub fn check(&self) {
        assert_eq!(self.while_down, self.orders / 4);
        assert_eq!((self.booked, self.sold), (self.orders, self.expected));
        assert!(self.repeated > 0, "the kills hit");
    }
}

fn main() -> Result<()> {
    let outcome = run(&common::program()?, 2_000)?;
    print_table(&[
        row(&["", "without a queue", "with a queue"]),
        row(&["orders taken while the stock service is down", "0", &outcome.while_down.to_string()]),
        row(&["orders booked in the end", "those taken while all is up", &format!("{} of {}", outcome.booked, outcome.orders)]),
        row(&["pieces sold", "", &format!("{}, {} expected", outcome.sold, outcome.expected)]),
    ]);
    println!("{} kills; {} orders came again and were booked once", outcome.kills, outcome.repeated);
    outcome.check();
    Ok(())
}
