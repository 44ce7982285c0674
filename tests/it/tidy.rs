//! House rules that a compiler doesn't know.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `directory` with one of these endings, relative to the repository.
fn files(directory: &str, endings: &[&str]) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![root().join(directory)]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| endings.iter().any(|e| ending == *e)) {
                found.push(path.strip_prefix(root()).unwrap().to_path_buf());
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All Rust code of the repository.
fn sources() -> Vec<PathBuf> {
    ["src", "crates", "perf", "tests", "benches", "examples"].iter().flat_map(|directory| files(directory, &["rs"])).collect()
}

/// Code without comments and without the text of strings: what the compiler sees as names.
fn code(text: &str) -> String {
    let (mut code, mut characters) = (String::new(), text.chars().peekable());
    while let Some(c) = characters.next() {
        match c {
            '/' if characters.peek() == Some(&'/') => {
                characters.by_ref().take_while(|c| *c != '\n').for_each(drop);
                code.push('\n');
            }
            '"' => {
                code.push('"');
                while let Some(c) = characters.next() {
                    match c {
                        '\\' => drop(characters.next()),
                        '"' => break,
                        '\n' => code.push('\n'),
                        _ => {}
                    }
                }
                code.push('"');
            }
            '\'' => {
                // A character literal, or the tick of a lifetime or label.
                let mut ahead = characters.clone();
                match (ahead.next(), ahead.next()) {
                    (Some('\\'), _) => {
                        characters.nth(1);
                        characters.by_ref().take_while(|c| *c != '\'').for_each(drop);
                    }
                    (Some(_), Some('\'')) => drop(characters.nth(1)),
                    _ => {}
                }
                code.push(' ');
            }
            c => code.push(c),
        }
    }
    code
}

/// Whether `word` is in `code` as a word of its own.
fn has_word(code: &str, word: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word).any(|(at, _)| !is_part(code[..at].chars().next_back()) && !is_part(code[at + word.len()..].chars().next()))
}

/// The data flow; a module uses only those to its right.
const FLOW: [&str; 6] = ["net", "frontend", "router", "shard", "log", "device"];
/// Anyone may use them; they use nothing of the crate.
const LEAVES: [&str; 2] = ["config", "request"];
/// On the outside: they put the others together, and nothing of the flow uses them.
const OUTSIDE: [&str; 6] = ["main", "lib", "cli", "server", "admin", "simulation"];

/// Names right after `crate::` in a file, one by one or in braces, with their line.
fn uses_of_crate(code: &str) -> Vec<(usize, String)> {
    let mut uses = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate::` and `some_crate::` are others.
        if code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + "crate::".len()..];
        let names: Vec<String> = match rest.strip_prefix('{') {
            Some(group) => top_level_names(group),
            None => vec![rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()],
        };
        uses.extend(names.into_iter().map(|name| (line, name)));
    }
    uses
}

/// First names of the items in `{a::b, c::{d, e}}`, the opening brace gone.
fn top_level_names(group: &str) -> Vec<String> {
    let (mut names, mut depth, mut name, mut fresh) = (Vec::new(), 0, String::new(), true);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            ':' if fresh && !name.is_empty() => fresh = false,
            c if depth == 0 && fresh && (c.is_alphanumeric() || c == '_') => name.push(c),
            _ => {}
        }
        if (!fresh || c == ',') && !name.is_empty() {
            names.push(std::mem::take(&mut name));
        }
    }
    names.extend((!name.is_empty()).then_some(name));
    names
}

/// The module of `src/` that a file belongs to.
fn module_of(path: &Path) -> String {
    let first = path.strip_prefix("src").unwrap().components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_string()
}

fn may_use(user: &str, used: &str) -> bool {
    let place = |name: &str| FLOW.iter().position(|module| *module == name);
    if user == used || OUTSIDE.contains(&user) {
        return true;
    }
    // A leaf's own types may name the buffers that requests carry, which only `device` can make.
    if LEAVES.contains(&user) {
        return user == "request" && used == "device";
    }
    LEAVES.contains(&used) || matches!((place(user), place(used)), (Some(user), Some(used)) if user < used)
}

#[test]
fn imports_go_only_to_the_right() {
    let mut steps_back = Vec::new();
    for path in files("src", &["rs"]) {
        let module = module_of(&path);
        // A test may put the whole together.
        if path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "simulation") {
            continue;
        }
        let text = code(&read(&path));
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (line, used) in uses_of_crate(text) {
            if !may_use(&module, &used) {
                steps_back.push(format!("{}:{line}: {module} uses {used}", path.display()));
            }
        }
    }
    assert!(steps_back.is_empty(), "only {} to the right, or config, request:\n{}", FLOW.join(" → "), steps_back.join("\n"));
}

#[test]
fn direction_rule_sees_a_step_to_the_left() {
    assert_eq!(uses_of_crate("use crate::net::x;\nlet a = crate::log::b();"), [(1, "net".into()), (2, "log".into())]);
    let names = |text: &str| uses_of_crate(text).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(names("use crate::{device::{Arena, Slice}, request::Now, log};"), ["device", "request", "log"]);
    assert_eq!(names("$crate::a mycrate::b pub(crate) fn"), [""; 0]);
    assert!(may_use("shard", "log") && may_use("log", "request") && may_use("net", "frontend"));
    assert!(!may_use("log", "shard") && !may_use("config", "log") && !may_use("request", "log") && !may_use("device", "log"));
}

#[test]
fn unsafe_is_only_in_device() {
    let found: Vec<String> = sources()
        .into_iter()
        .filter(|path| !path.starts_with("src/device") && !path.ends_with("src/device.rs"))
        .filter(|path| {
            let code = code(&read(path));
            // `unsafe_code` is the lint's name; the one permission is for `mod device`.
            let permissions = code.matches("allow(unsafe_code)").count();
            let allowed = if path.ends_with("src/lib.rs") && path.starts_with("src") { 1 } else { 0 };
            has_word(&code, "unsafe") || permissions > allowed
        })
        .map(|path| path.display().to_string())
        .collect();
    assert!(found.is_empty(), "unsafe outside src/device: {found:?}");
    assert!(read(Path::new("src/lib.rs")).contains("#[allow(unsafe_code)]\npub mod device;"));
    assert!(read(Path::new("Cargo.toml")).contains("unsafe_code = \"deny\""));
}

#[test]
fn runtime_is_named_in_one_file() {
    let found: Vec<String> = files("src", &["rs"])
        .into_iter()
        .chain(files("crates", &["rs"]))
        .filter(|path| !path.ends_with("src/net/runtime.rs") && !path.to_string_lossy().contains("src/transport/monoio"))
        .filter(|path| {
            let code = code(&read(path));
            has_word(&code, "monoio")
                && code.lines().any(|line| has_word(line, "monoio") && !line.contains("mod monoio") && !line.contains("feature"))
        })
        .map(|path| path.display().to_string())
        .collect();
    assert!(found.is_empty(), "the runtime is named outside src/net/runtime.rs: {found:?}");
}

#[test]
fn no_marker_is_left_behind() {
    // Put together here, so that this file doesn't find itself.
    let markers = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["HA", "CK"], ["W", "IP"]].map(|halves| halves.concat());
    let documents = ["README.md", "CHANGELOG.md"].map(PathBuf::from);
    let others = ["src", "crates", "perf", "scripts"].iter().flat_map(|directory| files(directory, &["md", "sh", "toml"]));
    let mut found = Vec::new();
    for path in sources().into_iter().chain(documents).chain(others) {
        for (number, line) in read(&path).lines().enumerate() {
            if markers.iter().any(|marker| has_word(line, marker)) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "finish it or write down what isn't there:\n{}", found.join("\n"));
}

/// Follows `mod name;` from the roots of the crates; a file that nobody names is compiled by nobody.
#[test]
fn every_source_file_is_part_of_a_crate() {
    let roots = ["src/lib.rs", "src/main.rs", "crates/wire/src/lib.rs", "crates/client/src/lib.rs", "perf/src/lib.rs", "tests/it/main.rs"];
    let mut reached: BTreeSet<PathBuf> = roots.iter().map(PathBuf::from).collect();
    // Cargo takes every file there as a root.
    for directory in
        ["benches", "examples", "crates/client/tests", "crates/client/examples", "crates/wire/tests", "perf/tests", "perf/benches"]
    {
        let is_root = |path: &PathBuf| path.parent() == Some(Path::new(directory)) || path.ends_with("main.rs");
        reached.extend(files(directory, &["rs"]).into_iter().filter(is_root));
    }
    let mut open: Vec<PathBuf> = reached.iter().cloned().collect();
    while let Some(path) = open.pop() {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let is_folder_root = ["lib", "main", "mod"].contains(&stem.as_str()) || roots.iter().any(|root| path == Path::new(root));
        let is_cargo_root = path.starts_with("benches") || path.starts_with("examples");
        let folder = if is_folder_root || is_cargo_root { path.parent().unwrap().to_path_buf() } else { path.with_extension("") };
        for line in code(&read(&path)).lines() {
            let declaration = line.trim().trim_start_matches("pub ").trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
            let Some(name) = declaration.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) else { continue };
            for child in [folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")] {
                if root().join(&child).is_file() && reached.insert(child.clone()) {
                    open.push(child);
                }
            }
        }
    }
    // Programs of their own, each with its own Cargo.toml.
    let peers = |path: &PathBuf| path.starts_with("perf/peers") || path.starts_with("tests/clients");
    let dead: Vec<PathBuf> = sources().into_iter().filter(|path| !reached.contains(path) && !peers(path)).collect();
    assert!(dead.is_empty(), "nobody names these files: {dead:?}");
}

/// Each line of a README's `sh` blocks that begins with `ringmain` or `cargo run … --` is understood by the program, and each
/// script and file that it names exists.
#[test]
fn commands_in_the_readme_exist() {
    let readme = read(Path::new("README.md"));
    let commands = commands_in(&readme);
    assert!(commands.len() > 5, "{commands:?}");
    for command in commands {
        // `--help` after a verb proves the verb; the flags of the line must be in that help.
        let words: Vec<&str> = command.split_whitespace().collect();
        let verbs: Vec<&str> = words.iter().copied().take_while(|word| word.chars().all(|c| c.is_ascii_lowercase())).take(2).collect();
        let verbs = if ["topic", "queue", "log", "config", "sink"].contains(verbs.first().unwrap_or(&"")) {
            &verbs[..]
        } else {
            &verbs[..verbs.len().min(1)]
        };
        let output = crate::harness::ringmain(&[verbs, &["--help"]].concat(), b"");
        let help = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "'ringmain {command}': {}", String::from_utf8_lossy(&output.stderr));
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            let name = flag.split('=').next().unwrap_or(flag);
            assert!(help.contains(name), "'ringmain {command}': no {name} in its help");
        }
    }
}

#[test]
fn files_that_documents_point_to_exist() {
    for document in ["README.md", "src/README.md", "CHANGELOG.md", "perf/README.md"].map(Path::new) {
        if !root().join(document).is_file() && document.starts_with("perf") {
            continue;
        }
        let text = read(document);
        let folder = document.parent().unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                assert!(root().join(folder).join(target).exists(), "{}: no {target}", document.display());
            }
        }
    }
}

#[test]
fn architecture_page_matches_the_tree() {
    let page = read(Path::new("src/README.md"));
    let lib = code(&read(Path::new("src/lib.rs")));
    let modules: Vec<&str> = lib.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert!(modules.len() > 2);
    for module in modules {
        assert!(page.contains(&format!("`{module}")), "src/README.md says nothing about `{module}`");
    }
    for script in files("scripts", &["sh"]) {
        assert!(read(Path::new("README.md")).contains(&*script.to_string_lossy()), "README.md doesn't name {}", script.display());
    }
}

/// What follows `ringmain` in the `sh` blocks of a document, comments and pipes cut off.
fn commands_in(document: &str) -> Vec<String> {
    let (mut commands, mut inside) = (Vec::new(), false);
    for line in document.lines() {
        if line.trim_start().starts_with("```") {
            inside = line.trim() == "```sh";
            continue;
        }
        let line = line.split(" #").next().unwrap_or_default();
        for part in line.split(['|', '&', ';', '>']).filter(|_| inside) {
            let part = part.trim();
            let own = part.strip_prefix("ringmain ").or_else(|| part.split_once("cargo run --release -- ").map(|(_, rest)| rest));
            commands.extend(own.map(|own| own.trim().to_string()));
        }
    }
    commands
}
