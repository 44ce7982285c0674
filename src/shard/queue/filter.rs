//! Filters of queues: which records of its topic a queue takes.
//!
//! A filter is a condition as SQL92 writes them and JMS selectors took them over: `region = 'eu' AND (size > 10 OR TAGS LIKE 'a%')`.
//! A name is that of a header; `KEYS` is the record's key, `TAGS` its tag, `TIMESTAMP` its time in ms. Names with other characters
//! than letters, digits, `_`, `$` and `.` stand in double quotes. Header values are text, compared byte by byte; beside a number
//! they are read as one. What isn't there, or isn't a number where one is needed, makes the comparison neither true nor
//! false; NOT, AND and OR go on with that as SQL does, and a record is taken only if the whole is true.
//!
//! Everything is bounded: a filter is compiled once into steps on a small stack, and a record costs one pass over its headers and one
//! over the steps. LIKE keeps one place to go back to, so that it costs at most text × pattern.

use std::cmp::Ordering;
use std::sync::Arc;

use ringmain_wire::ErrorCode;
use ringmain_wire::queue::FILTER_MAX_BYTES;
use ringmain_wire::record::headers;

use crate::request::Failure;

/// Open parentheses and operators that wait for their right side.
const DEPTH_MAX: usize = 64;
/// Headers that one filter looks at.
const NAMES_MAX: usize = 32;
/// Bytes of all patterns of one filter.
const PATTERNS_MAX_BYTES: usize = 256;
/// A longer value counts as none: comparing must stay cheap.
const VALUE_MAX_BYTES: usize = 4_096;
/// Longest text that can be a number.
const NUMBER_MAX_BYTES: usize = 64;

const KEY: usize = 0;
const TAG: usize = 1;
const FIRST_HEADER: usize = 2;

/// A compiled filter; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    program: Arc<Program>,
}

/// A record, as far as filters see it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// `None` = null.
    pub key: Option<&'a [u8]>,
    /// Encoded, see [`ringmain_wire::record::headers`].
    pub headers: &'a [u8],
    /// Of the header [`ringmain_wire::queue::name::TAG`].
    pub tag: Option<&'a [u8]>,
    /// Since the Unix epoch.
    pub timestamp_ms: i64,
}

impl Filter {
    /// Compiles a filter; an empty text takes everything.
    ///
    /// Errors: `InvalidFilter`, with the column (of characters, from 1) and what is expected there.
    pub fn parse(text: &str) -> Result<Filter, Failure> {
        let mut parser = Parser { text, at_bytes: 0, token_at_bytes: 0, program: Program::default(), patterns_bytes: 0 };
        if text.len() > FILTER_MAX_BYTES {
            return Err(parser.error_at(0, format!("a filter has at most {FILTER_MAX_BYTES} bytes, this one has {}", text.len())));
        }
        parser.condition()?;
        Ok(Filter { program: Arc::new(parser.program.with_names_in_order()) })
    }

    /// Takes every record.
    pub fn is_all(&self) -> bool {
        self.program.steps.is_empty()
    }

    /// Whether the record is taken.
    pub fn matches(&self, record: &Candidate<'_>) -> bool {
        self.is_all() || self.program.run(record) == Truth::True
    }
}

/// SQL's three values; AND is the smaller one, OR the larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    False,
    Unknown,
    True,
}

impl Truth {
    fn not(self) -> Truth {
        match self {
            Truth::False => Truth::True,
            Truth::Unknown => Truth::Unknown,
            Truth::True => Truth::False,
        }
    }
}

impl From<bool> for Truth {
    fn from(is_true: bool) -> Truth {
        if is_true { Truth::True } else { Truth::False }
    }
}

/// Conditions push a truth, operators take theirs from the stack and push another.
#[derive(Clone, Debug, Default)]
struct Program {
    steps: Vec<Step>,
    /// Headers in order, none twice.
    names: Vec<Box<[u8]>>,
}

#[derive(Clone, Debug)]
enum Step {
    Compare(Value, Comparison, Value),
    In(Value, Box<[Value]>),
    Like(Value, Box<[Glyph]>),
    IsNull(Value),
    IsTrue(Value),
    Not,
    And,
    Or,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    /// What the record has there: [`KEY`], [`TAG`], or [`FIRST_HEADER`] + index of the name.
    Slot(usize),
    Timestamp,
    Text(Box<[u8]>),
    Number(Number),
    Boolean(bool),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    /// Kept apart because a float has only 53 bits.
    Integer(i64),
    Real(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A piece of a LIKE pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Glyph {
    Byte(u8),
    /// `_`
    OneCharacter,
    /// `%`
    Anything,
}

impl Program {
    /// For the search by halves in [`Program::run`].
    fn with_names_in_order(mut self) -> Program {
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        order.sort_by(|a, b| self.names[*a].cmp(&self.names[*b]));
        let mut new_slot = vec![0; order.len()];
        for (new, old) in order.iter().enumerate() {
            new_slot[*old] = new;
        }
        let renumber = |value: &mut Value| {
            if let Value::Slot(slot) = value
                && *slot >= FIRST_HEADER
            {
                *slot = FIRST_HEADER + new_slot[*slot - FIRST_HEADER];
            }
        };
        for step in &mut self.steps {
            match step {
                Step::Compare(left, _, right) => {
                    renumber(left);
                    renumber(right);
                }
                Step::In(value, _) | Step::Like(value, _) | Step::IsNull(value) | Step::IsTrue(value) => renumber(value),
                Step::Not | Step::And | Step::Or => {}
            }
        }
        self.names.sort();
        self
    }

    fn run<'a>(&'a self, record: &'a Candidate<'a>) -> Truth {
        let mut slots = [None; FIRST_HEADER + NAMES_MAX];
        let short = |value: Option<&'a [u8]>| value.filter(|value| value.len() <= VALUE_MAX_BYTES);
        (slots[KEY], slots[TAG]) = (short(record.key), short(record.tag));
        if !self.names.is_empty() {
            for (name, value) in headers(record.headers).map_while(|header| header) {
                if let Ok(index) = self.names.binary_search_by(|known| (**known).cmp(name)) {
                    slots[FIRST_HEADER + index] = short(value);
                }
            }
        }
        let values = Values { slots, record };
        // Every operator that waits holds one truth back; BETWEEN needs two more for a moment.
        let mut stack = [Truth::Unknown; DEPTH_MAX + 3];
        let mut height = 0;
        for step in &self.steps {
            let truth = match step {
                Step::Compare(left, comparison, right) => compare(values.of(left), *comparison, values.of(right)),
                Step::In(value, list) => {
                    let value = values.of(value);
                    list.iter().map(|one| compare(value, Comparison::Equal, values.of(one))).max().unwrap_or(Truth::False)
                }
                Step::Like(value, pattern) => match values.of(value) {
                    Operand::Text(text) => is_like(text, pattern).into(),
                    _ => Truth::Unknown,
                },
                Step::IsNull(value) => (values.of(value) == Operand::Null).into(),
                Step::IsTrue(value) => match values.of(value).as_boolean() {
                    Some(is_true) => is_true.into(),
                    None => Truth::Unknown,
                },
                Step::Not => {
                    height -= 1;
                    stack[height].not()
                }
                Step::And => {
                    height -= 2;
                    stack[height].min(stack[height + 1])
                }
                Step::Or => {
                    height -= 2;
                    stack[height].max(stack[height + 1])
                }
            };
            stack[height] = truth;
            height += 1;
        }
        debug_assert_eq!(height, 1);
        stack[0]
    }
}

/// What a record has, by slot.
struct Values<'a> {
    slots: [Option<&'a [u8]>; FIRST_HEADER + NAMES_MAX],
    record: &'a Candidate<'a>,
}

/// A value at the time of comparing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Operand<'a> {
    Null,
    Text(&'a [u8]),
    Number(Number),
    Boolean(bool),
}

impl<'a> Values<'a> {
    fn of(&self, value: &'a Value) -> Operand<'a> {
        match value {
            Value::Slot(slot) => self.slots[*slot].map_or(Operand::Null, Operand::Text),
            Value::Timestamp => Operand::Number(Number::Integer(self.record.timestamp_ms)),
            Value::Text(text) => Operand::Text(text),
            Value::Number(number) => Operand::Number(*number),
            Value::Boolean(boolean) => Operand::Boolean(*boolean),
        }
    }
}

impl Operand<'_> {
    fn as_boolean(self) -> Option<bool> {
        match self {
            Operand::Boolean(boolean) => Some(boolean),
            Operand::Text(text) if text.eq_ignore_ascii_case(b"true") => Some(true),
            Operand::Text(text) if text.eq_ignore_ascii_case(b"false") => Some(false),
            _ => None,
        }
    }

    fn as_number(self) -> Option<Number> {
        match self {
            Operand::Number(number) => Some(number),
            Operand::Text(text) => Number::read(text),
            _ => None,
        }
    }
}

impl Number {
    fn read(text: &[u8]) -> Option<Number> {
        // Words like "inf" are floats to the standard library, and no numbers here.
        let is_number = text.len() <= NUMBER_MAX_BYTES && text.iter().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte));
        let text = std::str::from_utf8(text).ok().filter(|_| is_number)?;
        let integer = text.parse().ok().map(Number::Integer);
        integer.or_else(|| text.parse().ok().filter(|real: &f64| real.is_finite()).map(Number::Real))
    }

    fn compare(self, other: Number) -> Option<Ordering> {
        let real = |number| match number {
            Number::Integer(integer) => integer as f64,
            Number::Real(real) => real,
        };
        match (self, other) {
            (Number::Integer(one), Number::Integer(other)) => Some(one.cmp(&other)),
            (one, other) => real(one).partial_cmp(&real(other)),
        }
    }
}

fn compare(left: Operand<'_>, comparison: Comparison, right: Operand<'_>) -> Truth {
    let ordering = match (left, right) {
        (Operand::Null, _) | (_, Operand::Null) => None,
        (Operand::Text(left), Operand::Text(right)) => Some(left.cmp(right)),
        (Operand::Boolean(_), _) | (_, Operand::Boolean(_)) => {
            left.as_boolean().zip(right.as_boolean()).map(|(left, right)| left.cmp(&right))
        }
        _ => left.as_number().zip(right.as_number()).and_then(|(left, right)| left.compare(right)),
    };
    let Some(ordering) = ordering else { return Truth::Unknown };
    let holds = match comparison {
        Comparison::Equal => ordering.is_eq(),
        Comparison::NotEqual => ordering.is_ne(),
        Comparison::Less => ordering.is_lt(),
        Comparison::LessOrEqual => ordering.is_le(),
        Comparison::Greater => ordering.is_gt(),
        Comparison::GreaterOrEqual => ordering.is_ge(),
    };
    holds.into()
}

/// Greedy, with the last `%` as the only place to go back to: where an earlier one ends is settled once its piece has fitted.
fn is_like(text: &[u8], pattern: &[Glyph]) -> bool {
    let (mut at, mut glyph) = (0, 0);
    let mut last_anything = None;
    while at < text.len() {
        match pattern.get(glyph) {
            Some(Glyph::Anything) => {
                last_anything = Some((at, glyph + 1));
                glyph += 1;
                continue;
            }
            Some(Glyph::OneCharacter) => {
                (at, glyph) = (after_character(text, at), glyph + 1);
                continue;
            }
            Some(Glyph::Byte(byte)) if *byte == text[at] => {
                (at, glyph) = (at + 1, glyph + 1);
                continue;
            }
            _ => {}
        }
        let Some((from, after)) = last_anything else { return false };
        let from = after_character(text, from);
        last_anything = Some((from, after));
        (at, glyph) = (from, after);
    }
    pattern[glyph..].iter().all(|glyph| *glyph == Glyph::Anything)
}

/// Where the next character of UTF-8 begins; in other text, at most a few bytes on.
fn after_character(text: &[u8], at: usize) -> usize {
    let is_continuation = |byte: &&u8| **byte & 0xC0 == 0x80;
    at + 1 + text[at + 1..].iter().take(3).take_while(is_continuation).count()
}

#[derive(Clone, Debug, PartialEq)]
enum Token<'a> {
    /// A name or a word of the language.
    Word(&'a str),
    /// In double quotes.
    QuotedName(String),
    Text(String),
    Number(Number),
    Symbol(&'a str),
    End,
}

impl Token<'_> {
    fn is_word(&self, word: &str) -> bool {
        matches!(self, Token::Word(found) if found.eq_ignore_ascii_case(word))
    }

    fn is_symbol(&self, symbol: &str) -> bool {
        matches!(self, Token::Symbol(found) if *found == symbol)
    }
}

/// Words that can't be names without quotes.
const RESERVED: [&str; 11] = ["AND", "OR", "NOT", "BETWEEN", "IN", "LIKE", "ESCAPE", "IS", "NULL", "TRUE", "FALSE"];

/// What waits for its right side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Waiting {
    Parenthesis,
    Or,
    And,
    Not,
}

struct Parser<'a> {
    text: &'a str,
    at_bytes: usize,
    /// Where the last token began.
    token_at_bytes: usize,
    program: Program,
    patterns_bytes: usize,
}

impl<'a> Parser<'a> {
    /// Conditions, NOT, AND, OR and parentheses, without recursion: an operator waits until one that binds less follows.
    fn condition(&mut self) -> Result<(), Failure> {
        let mut waiting: Vec<Waiting> = Vec::new();
        let mut wants_condition = true;
        loop {
            let token = self.next()?;
            if wants_condition {
                let opens = match &token {
                    Token::End if waiting.is_empty() && self.program.steps.is_empty() => return Ok(()),
                    token if token.is_word("NOT") => Some(Waiting::Not),
                    token if token.is_symbol("(") => Some(Waiting::Parenthesis),
                    _ => None,
                };
                match opens {
                    Some(opens) => self.push(&mut waiting, opens)?,
                    None => {
                        self.predicate(token)?;
                        wants_condition = false;
                    }
                }
                continue;
            }
            let operator = match &token {
                token if token.is_word("AND") => Some(Waiting::And),
                token if token.is_word("OR") => Some(Waiting::Or),
                token if token.is_symbol(")") || *token == Token::End => None,
                _ => return Err(self.unexpected("AND, OR or the end", &token)),
            };
            while let Some(top) = waiting.pop_if(|top| *top != Waiting::Parenthesis && operator.is_none_or(|operator| *top >= operator)) {
                self.program.steps.push(match top {
                    Waiting::Not => Step::Not,
                    Waiting::And => Step::And,
                    Waiting::Or | Waiting::Parenthesis => Step::Or,
                });
            }
            match operator {
                Some(operator) => {
                    self.push(&mut waiting, operator)?;
                    wants_condition = true;
                }
                None if token == Token::End && waiting.is_empty() => return Ok(()),
                None if token == Token::End => return Err(self.unexpected("')'", &token)),
                None if waiting.pop().is_none() => return Err(self.unexpected("AND, OR or the end", &token)),
                None => {}
            }
        }
    }

    fn push(&self, waiting: &mut Vec<Waiting>, what: Waiting) -> Result<(), Failure> {
        if waiting.len() == DEPTH_MAX {
            return Err(self.error_at(self.token_at_bytes, format!("more than {DEPTH_MAX} parentheses and operators are open")));
        }
        waiting.push(what);
        Ok(())
    }

    /// A comparison, BETWEEN, IN, LIKE, IS NULL, or a name or word that is true by itself.
    fn predicate(&mut self, first: Token<'a>) -> Result<(), Failure> {
        let left = self.value(first, "a condition")?;
        let before = (self.at_bytes, self.token_at_bytes);
        let mut token = self.next()?;
        if let Some(comparison) = comparison(&token) {
            let right_token = self.next()?;
            let right = self.value(right_token, "a name or a value")?;
            return self.compare(left, comparison, right, before.0);
        }
        let is_slot = matches!(left, Value::Slot(_));
        if token.is_word("IS") && (is_slot || left == Value::Timestamp) {
            token = self.next()?;
            let negated = token.is_word("NOT");
            if negated {
                token = self.next()?;
            }
            self.expect(&token, token.is_word("NULL"), "NULL")?;
            self.program.steps.push(Step::IsNull(left));
            return self.negate(negated);
        }
        let negated = token.is_word("NOT");
        if negated {
            token = self.next()?;
        }
        if token.is_word("BETWEEN") {
            let low = self.bound()?;
            let token = self.next()?;
            self.expect(&token, token.is_word("AND"), "AND")?;
            let high = self.bound()?;
            self.program.steps.push(Step::Compare(left.clone(), Comparison::GreaterOrEqual, low));
            self.program.steps.push(Step::Compare(left, Comparison::LessOrEqual, high));
            self.program.steps.push(Step::And);
        } else if token.is_word("IN") && is_slot {
            let list = self.list()?;
            self.program.steps.push(Step::In(left, list));
        } else if token.is_word("LIKE") && is_slot {
            let pattern = self.pattern()?;
            self.program.steps.push(Step::Like(left, pattern));
        } else if negated {
            return Err(self.unexpected(if is_slot { "BETWEEN, IN or LIKE" } else { "BETWEEN" }, &token));
        } else if is_slot || matches!(left, Value::Boolean(_)) {
            (self.at_bytes, self.token_at_bytes) = before;
            self.program.steps.push(Step::IsTrue(left));
        } else {
            return Err(self.unexpected("a comparison", &token));
        }
        self.negate(negated)
    }

    fn negate(&mut self, negated: bool) -> Result<(), Failure> {
        if negated {
            self.program.steps.push(Step::Not);
        }
        Ok(())
    }

    fn compare(&mut self, left: Value, comparison: Comparison, right: Value, at_bytes: usize) -> Result<(), Failure> {
        let has_boolean = [&left, &right].into_iter().any(|value| matches!(value, Value::Boolean(_)));
        if has_boolean && !matches!(comparison, Comparison::Equal | Comparison::NotEqual) {
            return Err(self.error_at(at_bytes, "TRUE and FALSE are compared with = and <> only".into()));
        }
        self.program.steps.push(Step::Compare(left, comparison, right));
        Ok(())
    }

    fn bound(&mut self) -> Result<Value, Failure> {
        let token = self.next()?;
        let value = self.value(token, "a bound")?;
        self.expect(&Token::End, !matches!(value, Value::Boolean(_)), "a text or a number as a bound")?;
        Ok(value)
    }

    fn list(&mut self) -> Result<Box<[Value]>, Failure> {
        let open = self.next()?;
        self.expect(&open, open.is_symbol("("), "'('")?;
        let mut list = Vec::new();
        loop {
            let token = self.next()?;
            list.push(match token {
                Token::Text(text) => Value::Text(text.into_bytes().into()),
                Token::Number(number) => Value::Number(number),
                token => return Err(self.unexpected("a text or a number", &token)),
            });
            let token = self.next()?;
            if token.is_symbol(")") {
                return Ok(list.into());
            }
            self.expect(&token, token.is_symbol(","), "',' or ')'")?;
        }
    }

    fn pattern(&mut self) -> Result<Box<[Glyph]>, Failure> {
        let token = self.next()?;
        let Token::Text(text) = token else { return Err(self.unexpected("a pattern in quotes", &token)) };
        let pattern_at_bytes = self.token_at_bytes;
        self.patterns_bytes += text.len();
        if self.patterns_bytes > PATTERNS_MAX_BYTES {
            return Err(self.error_at(pattern_at_bytes, format!("the patterns of a filter have at most {PATTERNS_MAX_BYTES} bytes")));
        }
        let before = (self.at_bytes, self.token_at_bytes);
        let mut escape = None;
        if self.next()?.is_word("ESCAPE") {
            let token = self.next()?;
            escape = match &token {
                Token::Text(text) if text.chars().count() == 1 => text.chars().next(),
                _ => return Err(self.unexpected("one character in quotes", &token)),
            };
        } else {
            (self.at_bytes, self.token_at_bytes) = before;
        }
        let mut glyphs = Vec::with_capacity(text.len());
        let mut characters = text.chars();
        while let Some(mut character) = characters.next() {
            let is_escaped = Some(character) == escape;
            if is_escaped {
                let escaped = characters.next().filter(|escaped| ['%', '_'].contains(escaped) || Some(*escaped) == escape);
                let message = "in a pattern, the escape character stands before %, _ or itself";
                character = escaped.ok_or_else(|| self.error_at(pattern_at_bytes, message.into()))?;
            }
            match character {
                '%' if !is_escaped => glyphs.push(Glyph::Anything),
                '_' if !is_escaped => glyphs.push(Glyph::OneCharacter),
                literal => glyphs.extend(literal.encode_utf8(&mut [0; 4]).bytes().map(Glyph::Byte)),
            }
        }
        Ok(glyphs.into())
    }

    fn value(&mut self, token: Token<'a>, expected: &str) -> Result<Value, Failure> {
        match token {
            Token::Text(text) => Ok(Value::Text(text.into_bytes().into())),
            Token::Number(number) => Ok(Value::Number(number)),
            Token::Word(_) if token.is_word("TRUE") || token.is_word("FALSE") => Ok(Value::Boolean(token.is_word("TRUE"))),
            Token::Word("KEYS") => Ok(Value::Slot(KEY)),
            Token::Word("TAGS") => Ok(Value::Slot(TAG)),
            Token::Word("TIMESTAMP") => Ok(Value::Timestamp),
            Token::Word(word) if !RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(word)) => self.header(word),
            Token::QuotedName(name) => self.header(&name),
            token => Err(self.unexpected(expected, &token)),
        }
    }

    fn header(&mut self, name: &str) -> Result<Value, Failure> {
        let names = &mut self.program.names;
        let index = names.iter().position(|known| **known == *name.as_bytes()).unwrap_or(names.len());
        if index == NAMES_MAX {
            return Err(self.error_at(self.token_at_bytes, format!("a filter looks at most at {NAMES_MAX} headers")));
        }
        if index == names.len() {
            names.push(name.as_bytes().into());
        }
        Ok(Value::Slot(FIRST_HEADER + index))
    }

    fn next(&mut self) -> Result<Token<'a>, Failure> {
        let rest = self.text[self.at_bytes..].trim_start();
        self.token_at_bytes = self.text.len() - rest.len();
        let Some(first) = rest.chars().next() else {
            self.at_bytes = self.text.len();
            return Ok(Token::End);
        };
        let (token, bytes) = match first {
            '\'' => self.quoted(rest, '\'').map(|(text, bytes)| (Token::Text(text), bytes))?,
            '"' => self.quoted(rest, '"').map(|(name, bytes)| (Token::QuotedName(name), bytes))?,
            _ if is_number_start(rest.as_bytes()) => {
                let bytes = number_bytes(rest.as_bytes());
                let number = Number::read(&rest.as_bytes()[..bytes]).filter(|_| !rest[bytes..].starts_with(is_name_character));
                let number = number.ok_or_else(|| self.error_at(self.token_at_bytes, "a number is expected".into()))?;
                (Token::Number(number), bytes)
            }
            first if is_name_character(first) => {
                let bytes = rest.find(|character| !is_name_character(character)).unwrap_or(rest.len());
                (Token::Word(&rest[..bytes]), bytes)
            }
            first => {
                let bytes = if ["<=", ">=", "<>"].iter().any(|symbol| rest.starts_with(symbol)) { 2 } else { first.len_utf8() };
                (Token::Symbol(&rest[..bytes]), bytes)
            }
        };
        self.at_bytes = self.token_at_bytes + bytes;
        Ok(token)
    }

    /// A text in quotes, doubled inside for one, and how long it is.
    fn quoted(&self, rest: &str, quote: char) -> Result<(String, usize), Failure> {
        let mut text = String::new();
        let mut characters = rest.char_indices().skip(1).peekable();
        while let Some((at, character)) = characters.next() {
            if character != quote {
                text.push(character);
            } else if characters.next_if(|(_, next)| *next == quote).is_some() {
                text.push(quote);
            } else {
                return Ok((text, at + 1));
            }
        }
        Err(self.error_at(self.token_at_bytes, format!("the closing {quote} is missing")))
    }

    fn expect(&self, token: &Token<'_>, is_there: bool, expected: &str) -> Result<(), Failure> {
        if is_there { Ok(()) } else { Err(self.unexpected(expected, token)) }
    }

    fn unexpected(&self, expected: &str, token: &Token<'_>) -> Failure {
        let found = match token {
            Token::End if self.token_at_bytes == self.text.len() => "the end".to_owned(),
            _ => format!("'{}'", &self.text[self.token_at_bytes..self.at_bytes]),
        };
        self.error_at(self.token_at_bytes, format!("{expected} is expected, not {found}"))
    }

    fn error_at(&self, at_bytes: usize, what: String) -> Failure {
        let column = self.text[..at_bytes].chars().count() + 1;
        Failure::new(ErrorCode::InvalidFilter, format!("the filter at column {column}: {what}"))
    }
}

fn comparison(token: &Token<'_>) -> Option<Comparison> {
    let Token::Symbol(symbol) = token else { return None };
    Some(match *symbol {
        "=" => Comparison::Equal,
        "<>" => Comparison::NotEqual,
        "<" => Comparison::Less,
        "<=" => Comparison::LessOrEqual,
        ">" => Comparison::Greater,
        ">=" => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

fn is_name_character(character: char) -> bool {
    character.is_alphanumeric() || ['_', '$', '.'].contains(&character)
}

fn is_number_start(bytes: &[u8]) -> bool {
    let unsigned = bytes.strip_prefix(b"-").or(bytes.strip_prefix(b"+")).unwrap_or(bytes);
    let unsigned = unsigned.strip_prefix(b".").unwrap_or(unsigned);
    unsigned.first().is_some_and(u8::is_ascii_digit)
}

fn number_bytes(bytes: &[u8]) -> usize {
    let digits = |from: usize| from + bytes[from..].iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'.').count();
    let mut end = digits(usize::from(b"+-".contains(&bytes[0])));
    if bytes.get(end).is_some_and(|byte| byte.eq_ignore_ascii_case(&b'e')) {
        let exponent = end + 1 + usize::from(bytes.get(end + 1).is_some_and(|byte| b"+-".contains(byte)));
        if bytes.get(exponent).is_some_and(u8::is_ascii_digit) {
            end = digits(exponent);
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringmain_wire::record::HeadersBuilder;

    use super::*;

    /// A record with `name=value` headers; one without `=` is null.
    fn is_taken(filter: &str, headers: &[&str]) -> bool {
        let mut builder = HeadersBuilder::default();
        for header in headers {
            match header.split_once('=') {
                Some((name, value)) => builder.push(name.as_bytes(), Some(value.as_bytes())),
                None => builder.push(header.as_bytes(), None),
            };
        }
        let record = Candidate { key: Some(b"k1"), headers: builder.as_bytes(), tag: Some(b"red"), timestamp_ms: 1_000 };
        Filter::parse(filter).unwrap_or_else(|failure| panic!("{filter}: {}", failure.message)).matches(&record)
    }

    #[track_caller]
    fn check(filter: &str, headers: &[&str], taken: bool) {
        assert_eq!(is_taken(filter, headers), taken, "{filter} on {headers:?}");
    }

    #[track_caller]
    fn refused(filter: &str, message: &str) {
        let failure = Filter::parse(filter).expect_err(filter);
        assert_eq!((failure.code, failure.message.as_str()), (ErrorCode::InvalidFilter, message));
    }

    #[test]
    fn empty_filter_takes_everything() {
        for text in ["", "  \n"] {
            assert!(Filter::parse(text).unwrap().is_all());
            check(text, &[], true);
        }
        assert!(!Filter::parse("TRUE").unwrap().is_all());
    }

    #[test]
    fn key_tag_and_time_have_names() {
        check("KEYS = 'k1' AND TAGS IN ('blue', 'red') AND TIMESTAMP BETWEEN 999 AND 1000", &[], true);
        check("TAGS = 'blue'", &[], false);
        check("\"TAGS\" = 'blue'", &["TAGS=blue"], true);
        let nothing = Candidate { key: None, headers: b"", tag: None, timestamp_ms: 0 };
        let matches = |filter| Filter::parse(filter).unwrap().matches(&nothing);
        assert!(matches("KEYS IS NULL AND TAGS IS NULL AND TIMESTAMP IS NOT NULL"));
        assert!(!matches("KEYS = ''"));
    }

    #[test]
    fn texts_compare_as_text_and_beside_numbers_as_numbers() {
        check("size = '010'", &["size=10"], false);
        check("size = 10", &["size=010"], true);
        check("size = 10.0", &["size=1e1"], true);
        check("size > 9", &["size=10"], true);
        check("size > '9'", &["size=10"], false);
        check("-.5 < size", &["size=0"], true);
        check("size <> 9007199254740993", &["size=9007199254740992"], true);
        check("a <= b", &["a=x", "b=y"], true);
        check("it = 'don''t'", &["it=don't"], true);
        for no_number in ["size=", "size=inf", "size=1x", "size=-", "size"] {
            check("size = 1 OR size <> 1 OR size IN (1, 2) OR NOT (size = 1)", &[no_number], false);
        }
    }

    #[test]
    fn booleans_are_words() {
        check("urgent", &["urgent=TRUE"], true);
        check("urgent = true", &["urgent=True"], true);
        check("urgent <> TRUE", &["urgent=false"], true);
        check("NOT urgent", &["urgent=false"], true);
        check("NOT urgent", &["urgent=1"], false);
        check("TRUE AND NOT FALSE", &[], true);
    }

    #[test]
    fn nothing_is_neither_true_nor_false() {
        check("a = 1 OR TRUE", &[], true);
        check("a = 1 AND FALSE OR TRUE", &[], true);
        check("NOT (a = 1 AND FALSE)", &[], true);
        check("NOT (a = 1 AND TRUE)", &[], false);
        check("a NOT BETWEEN 1 AND 2", &[], false);
        check("a NOT LIKE 'x%'", &[], false);
        check("a NOT IN ('x')", &[], false);
        check("a IS NULL AND b IS NULL AND c IS NOT NULL", &["b", "c="], true);
        check("a IS NULL", &[&format!("a={}", "x".repeat(VALUE_MAX_BYTES + 1))], true);
    }

    #[test]
    fn and_binds_closer_than_or_and_not_closer_than_both() {
        check("TRUE OR TRUE AND FALSE", &[], true);
        check("(TRUE OR TRUE) AND FALSE", &[], false);
        check("NOT FALSE AND FALSE", &[], false);
        check("NOT (FALSE AND FALSE)", &[], true);
        check("NOT NOT TRUE and not not not false", &[], true);
        check("((a = 1))", &["a=1"], true);
    }

    #[test]
    fn between_and_in_and_their_opposites() {
        check("a BETWEEN 2 AND 3 AND TRUE", &["a=3"], true);
        check("a BETWEEN 2 AND 3", &["a=3.01"], false);
        check("a NOT BETWEEN 'b' AND 'd'", &["a=e"], true);
        check("5 BETWEEN low AND high", &["low=1", "high=9"], true);
        check("a IN ('x', 2)", &["a=2.0"], true);
        check("a NOT IN ('x', 'y')", &["a=z"], true);
    }

    #[test]
    fn patterns() {
        for (pattern, text, fits) in [
            ("", "", true),
            ("", "a", false),
            ("%", "", true),
            ("a%", "abc", true),
            ("%c", "abc", true),
            ("%b%", "abc", true),
            ("a_c", "abc", true),
            ("a_c", "aéc", true),
            ("__", "é", false),
            ("%_é", "aéé", true),
            ("a%b%c", "a1b2b3c", true),
            ("a%b%c", "a1b2b3", false),
            ("%aab", "aaaaaab", true),
            ("ab", "abc", false),
        ] {
            check(&format!("x LIKE '{pattern}'"), &[&format!("x={text}")], fits);
            check(&format!("x NOT LIKE '{pattern}'"), &[&format!("x={text}")], !fits);
        }
        check("x LIKE '10!%!_!!%' ESCAPE '!'", &["x=10%_!off"], true);
        check("x LIKE '10!%' ESCAPE '!' AND TRUE", &["x=100"], false);
    }

    #[test]
    fn hostile_pattern_costs_no_more_than_text_times_pattern() {
        let pattern = format!("{}b", "%a".repeat(PATTERNS_MAX_BYTES / 2 - 1));
        check(&format!("x LIKE '{pattern}'"), &[&format!("x={}", "a".repeat(VALUE_MAX_BYTES))], false);
    }

    #[test]
    fn last_of_several_headers_counts() {
        check("a = 'second'", &["a=first", "a=second"], true);
        check("zone = 'z' AND alpha = 'a' AND m = 'm' AND \"content-type\" = 'c'", &["content-type=c", "m=m", "alpha=a", "zone=z"], true);
    }

    #[test]
    fn errors_say_where_and_what() {
        refused("a =", "the filter at column 4: a name or a value is expected, not the end");
        refused("é ! 'x'", "the filter at column 3: AND, OR or the end is expected, not '!'");
        refused("(a = 1", "the filter at column 7: ')' is expected, not the end");
        refused("a = 1)", "the filter at column 6: AND, OR or the end is expected, not ')'");
        refused("a = 'x", "the filter at column 5: the closing ' is missing");
        refused("a = 1x", "the filter at column 5: a number is expected");
        refused("a = 1.2.3", "the filter at column 5: a number is expected");
        refused("a AND", "the filter at column 6: a condition is expected, not the end");
        refused("AND a", "the filter at column 1: a condition is expected, not 'AND'");
        refused("a NOT 5", "the filter at column 7: BETWEEN, IN or LIKE is expected, not '5'");
        refused("'a' LIKE 'b'", "the filter at column 5: a comparison is expected, not 'LIKE'");
        refused("a LIKE 5", "the filter at column 8: a pattern in quotes is expected, not '5'");
        refused("a LIKE 'x' ESCAPE 'yy'", "the filter at column 19: one character in quotes is expected, not ''yy''");
        refused("a LIKE 'x!' ESCAPE '!'", "the filter at column 8: in a pattern, the escape character stands before %, _ or itself");
        refused("a IN ()", "the filter at column 7: a text or a number is expected, not ')'");
        refused("a IN (1 2)", "the filter at column 9: ',' or ')' is expected, not '2'");
        refused("a IS 5", "the filter at column 6: NULL is expected, not '5'");
        refused("a > TRUE", "the filter at column 2: TRUE and FALSE are compared with = and <> only");
        refused("a BETWEEN 1 OR 2", "the filter at column 13: AND is expected, not 'OR'");
        refused("a = 1 b = 2", "the filter at column 7: AND, OR or the end is expected, not 'b'");
        refused("()", "the filter at column 2: a condition is expected, not ')'");
    }

    #[test]
    fn bounds_are_kept() {
        let nested = |depth: usize| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
        check(&nested(DEPTH_MAX), &["a=true"], true);
        assert!(Filter::parse(&nested(DEPTH_MAX + 1)).unwrap_err().message.contains("column 65: more than 64 parentheses"));
        // The stack is at its highest: every operator waits, and the last condition is a BETWEEN.
        let deepest = format!("{}a BETWEEN 1 AND 2{}", "TRUE AND (".repeat(DEPTH_MAX / 2), ")".repeat(DEPTH_MAX / 2));
        check(&deepest, &["a=1"], true);
        let names = |count: usize| (0..count).map(|name| format!("h{name} IS NULL")).collect::<Vec<_>>().join(" AND ");
        check(&names(NAMES_MAX), &[], true);
        assert!(Filter::parse(&names(NAMES_MAX + 1)).unwrap_err().message.ends_with("at most at 32 headers"));
        assert!(Filter::parse(&" ".repeat(FILTER_MAX_BYTES + 1)).is_err());
        assert!(Filter::parse(&format!("a LIKE '{}'", "x".repeat(PATTERNS_MAX_BYTES + 1))).is_err());
    }

    /// Tried one by one, as slow as it likes.
    fn is_like_by_definition(text: &[char], pattern: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('%', rest)) => (0..=text.len()).any(|skipped| is_like_by_definition(&text[skipped..], rest)),
            Some(('_', rest)) => !text.is_empty() && is_like_by_definition(&text[1..], rest),
            Some((literal, rest)) => text.first() == Some(literal) && is_like_by_definition(&text[1..], rest),
        }
    }

    proptest! {
        /// Any text is a filter or an error with a column; neither parsing nor matching panics.
        #[test]
        fn random_text_never_panics(text in "\\PC{0,60}", headers in proptest::collection::vec(any::<u8>(), 0..60)) {
            let record = Candidate { key: None, headers: &headers, tag: Some(&headers), timestamp_ms: 0 };
            match Filter::parse(&text) {
                Ok(filter) => { let _ = filter.matches(&record); }
                Err(failure) => prop_assert!(failure.message.starts_with("the filter at column ")),
            }
        }

        /// Likewise for text made of the language's own words, which gets further.
        #[test]
        fn random_words_never_panic(words in proptest::collection::vec(proptest::sample::select(vec![
            "a", "\"b c\"", "TAGS", "'x'", "'a%'", "'!'", "1", "-2.5", "TRUE", "=", "<>", "<", "(", ")", ",", "AND", "OR", "NOT",
            "BETWEEN", "IN", "LIKE", "ESCAPE", "IS", "NULL",
        ]), 0..24)) {
            let mut headers = HeadersBuilder::default();
            headers.push(b"a", Some(b"abc")).push(b"b c", Some(b"1"));
            let record = Candidate { key: None, headers: headers.as_bytes(), tag: None, timestamp_ms: 0 };
            if let Ok(filter) = Filter::parse(&words.join(" ")) {
                let _ = filter.matches(&record);
            }
        }

        /// LIKE is what its definition says.
        #[test]
        fn patterns_match_as_defined(text in "[abé]{0,8}", pattern in "[abé%_]{0,8}") {
            let characters = |text: &str| text.chars().collect::<Vec<_>>();
            let expected = is_like_by_definition(&characters(&text), &characters(&pattern));
            prop_assert_eq!(is_taken(&format!("x LIKE '{pattern}'"), &[&format!("x={text}")]), expected);
        }
    }
}
