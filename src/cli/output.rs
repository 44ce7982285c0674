//! Tables and JSON on standard output.

use std::io::{self, IsTerminal, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{HumanBytes, HumanCount};
use serde_json::Value;

/// One field of a table: what it is decides how it looks to people and to programs.
pub enum Cell {
    Text(String),
    Count(u64),
    Bytes(u64),
}

impl Cell {
    pub fn text(text: impl ToString) -> Cell {
        Cell::Text(text.to_string())
    }

    fn for_people(&self) -> comfy_table::Cell {
        match self {
            Cell::Text(text) => comfy_table::Cell::new(text),
            Cell::Count(number) => comfy_table::Cell::new(HumanCount(*number)).set_alignment(CellAlignment::Right),
            Cell::Bytes(number) => comfy_table::Cell::new(HumanBytes(*number)).set_alignment(CellAlignment::Right),
        }
    }

    fn for_programs(&self) -> String {
        match self {
            Cell::Text(text) => text.clone(),
            Cell::Count(number) | Cell::Bytes(number) => number.to_string(),
        }
    }
}

/// A table on a terminal; else a head line and one line per row, tab-separated, numbers in full.
pub fn table(head: &[&str], rows: &[Vec<Cell>]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(head.iter().map(|name| name.to_uppercase()));
        table.add_rows(rows.iter().map(|row| row.iter().map(Cell::for_people).collect::<Vec<_>>()));
        return writeln!(out, "{table}");
    }
    writeln!(out, "{}", head.join("\t"))?;
    for row in rows {
        writeln!(out, "{}", row.iter().map(Cell::for_programs).collect::<Vec<_>>().join("\t"))?;
    }
    Ok(())
}

/// One JSON value on a line.
pub fn json(value: &Value) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{value}")
}

/// One line of text.
pub fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}
