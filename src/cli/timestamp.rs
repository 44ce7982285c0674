//! Points in time as RFC 3339 in UTC, to and from milliseconds since the Unix epoch.

/// `2026-11-21T10:49:25.000Z`; years beyond 9999 are written as they are.
pub fn format(timestamp_ms: i64) -> String {
    let (days, in_day_ms) = (timestamp_ms.div_euclid(DAY_MS), timestamp_ms.rem_euclid(DAY_MS));
    let (year, month, day) = date(days);
    let (hour, minute, second, ms) = (in_day_ms / 3_600_000, in_day_ms / 60_000 % 60, in_day_ms / 1_000 % 60, in_day_ms % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Reads `2026-11-21T10:49:25Z`, with a fraction or an offset such as `+02:00` if wanted; `None` = it isn't one.
pub fn parse(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
    };
    let mark = |at: usize, allowed: &[u8]| text.as_bytes().get(at).filter(|b| allowed.contains(b));
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    [(4, &b"-"[..]), (7, b"-"), (10, b"Tt "), (13, b":"), (16, b":")]
        .iter()
        .all(|(at, allowed)| mark(*at, allowed).is_some())
        .then_some(())?;
    let (mut at, mut ms) = (19, 0);
    if mark(at, b".").is_some() {
        let fraction = text[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        // As many digits as milliseconds have, the missing ones being zeros: .5 is 500.
        let digits = &text[at + 1..at + 1 + fraction.min(3)];
        ms = format!("{digits:0<3}").parse().ok().filter(|_| fraction > 0)?;
        at += 1 + fraction;
    }
    let offset_minutes = match &text.as_bytes()[at..] {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let minutes = number(at + 1, at + 3)? * 60 + number(at + 4, at + 6)?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    let days = days(year, month, day);
    // A day that the month doesn't have would come back as another date.
    if date(days) != (year, month, day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(days * DAY_MS + hour * 3_600_000 + (minute - offset_minutes) * 60_000 + second * 1_000 + ms)
}

/// Days since 1970-01-01. Years are counted from March, so that a leap day is a year's last day, and in
/// cycles of 400 years (146,097 days).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (cycle, year_of_cycle) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    cycle * 146_097 + year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year - MARCH_0000_TO_1970_DAYS
}

/// The other way: (year, month, day).
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + MARCH_0000_TO_1970_DAYS;
    let (cycle, day_of_cycle) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_cycle = (day_of_cycle - day_of_cycle / 1_460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * month_from_march + 2) / 5 + 1, (month_from_march + 2) % 12 + 1);
    (cycle * 400 + year_of_cycle + i64::from(month <= 2), month, day)
}

const DAY_MS: i64 = 86_400_000;
const MARCH_0000_TO_1970_DAYS: i64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_agree_with_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_258_165_042, "2026-11-21T10:49:25.042Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(format(ms), text);
            assert_eq!(parse(text), Some(ms));
        }
    }

    #[test]
    fn every_day_of_800_years_comes_back() {
        for day in -146_097..146_097 {
            assert_eq!(parse(&format(day * DAY_MS + 1)), Some(day * DAY_MS + 1));
        }
    }

    #[test]
    fn offsets_and_fractions_are_read() {
        let utc = parse("2026-11-21T10:49:25Z");
        assert_eq!(parse("2026-11-21T12:49:25+02:00"), utc);
        assert_eq!(parse("2026-11-21 05:19:25-05:30"), utc);
        assert_eq!(parse("2026-11-21T10:49:25.5Z"), utc.map(|ms| ms + 500));
        assert_eq!(parse("2026-11-21T10:49:25.0429999Z"), utc.map(|ms| ms + 42));
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "2026-11-21",
            "2026-11-21T10:49:25",
            "2026-02-30T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T10:49:25.Z",
            "2026-11-21T10:49:2éZ",
            "+026-11-21T10:49:25Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
