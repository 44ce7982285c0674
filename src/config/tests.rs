use super::*;

/// Loads with `flags` (`name=value`), `variables` (`NAME=value`) and the text of a file; the value of `key`
/// in force and its origin, or the error.
fn check(flags: &[&str], variables: &[&str], file: &str, key: &str, expected: &str) {
    let pair = |text: &&str| text.split_once('=').map(|(name, value)| (name.to_string(), value.to_string())).unwrap();
    let flags: Vec<(String, String)> = flags.iter().map(pair).collect();
    let flags: Vec<(&str, String)> = flags.iter().map(|(flag, value)| (flag.as_str(), value.clone())).collect();
    let got = match load(&flags, variables.iter().map(pair), Some((Path::new("r.toml"), file))) {
        Err(error) => error.to_string(),
        Ok(loaded) => {
            let (_, value, origin) = loaded.settings().find(|(knob, ..)| knob.key == key).unwrap();
            format!("{value} [{origin}]")
        }
    };
    assert!(got.starts_with(expected), "got: {got}\nexpected: {expected}");
}

#[test]
fn value_set_in_several_layers_comes_from_the_topmost() {
    let file = "[native]\nlisten = \"127.0.0.1:1\"\n";
    let variable = "RINGMAIN_NATIVE__LISTEN=127.0.0.1:2";
    check(&[], &[], "", "native.listen", "127.0.0.1:7171 [default]");
    check(&[], &[], file, "native.listen", "127.0.0.1:1 [r.toml:2]");
    check(&[], &[variable], file, "native.listen", "127.0.0.1:2 [RINGMAIN_NATIVE__LISTEN]");
    check(&["native=127.0.0.1:3"], &[variable], file, "native.listen", "127.0.0.1:3 [--native]");
}

#[test]
fn unknown_key_is_refused_with_a_suggestion() {
    check(&[], &[], "[native]\n\nlisen = 1\n", "", "r.toml:3: unknown key 'native.lisen'; did you mean 'native.listen'?");
    check(&[], &[], "native = \"off\"\n", "", "r.toml:1: unknown key 'native'; did you mean 'native.listen'?");
    check(&[], &[], "[log]\ncores = \"0\"\n", "", "r.toml:2: unknown key 'log.cores'; did you mean 'shard.cores'?");
    check(
        &[],
        &["RINGMAIN_LOG__SEGMENT_BYTE=1"],
        "",
        "",
        "RINGMAIN_LOG__SEGMENT_BYTE: unknown key 'log.segment_byte'; did you mean 'log.segment_bytes'?",
    );
    check(&[], &["RINGMAIN_PIZZA__TOPPING=1"], "", "", "RINGMAIN_PIZZA__TOPPING: unknown key 'pizza.topping'; 'ringmain config print'");
}

#[test]
fn variable_without_double_underscore_is_no_configuration() {
    check(&[], &["RINGMAIN_CONNECT=elsewhere:1", "RINGMAIN_NATIVE=nonsense"], "", "native.listen", "127.0.0.1:7171 [default]");
}

#[test]
fn value_out_of_bounds_is_refused_with_its_place() {
    check(&["segment-bytes=1M"], &[], "", "", "--segment-bytes: log.segment_bytes = '1M': must be 4194304 to");
    check(&["segment-bytes=4194305"], &[], "", "", "--segment-bytes: log.segment_bytes = '4194305': must be a multiple of 4096");
    check(&["memory=1M"], &[], "", "", "--memory: memory.limit = '1M': must be");
    check(&["shards=0"], &[], "", "", "--shards: shard.count = '0': must be 1 to 1024");
    check(&["io=fast"], &[], "", "", "--io: io.mode = 'fast': choose auto, uring or fallback");
    check(&["native=7171"], &[], "", "", "--native: native.listen = '7171': write HOST:PORT");
    check(&["cores=3-1"], &[], "", "", "--cores: shard.cores = '3-1': write core numbers");
    check(&[], &[], "[shard]\ncount = 1.5\n", "", "r.toml:2: shard.count: expected");
    check(&[], &[], "[shard\n", "", "r.toml:1: ");
}

#[test]
fn address_that_others_reach_needs_insecure() {
    check(&["native=0.0.0.0:7171"], &[], "", "", "--native: native.listen = 0.0.0.0:7171 is reachable");
    check(&["admin=[::]:9600"], &[], "", "", "--admin: admin.listen = [::]:9600 is reachable");
    check(&["native=0.0.0.0:7171", "insecure=true"], &[], "", "native.listen", "0.0.0.0:7171 [--native]");
}

#[test]
fn values_are_read_in_every_spelling() {
    check(&["memory=256M"], &[], "", "memory.limit", "268435456 ");
    check(&["memory=1GiB"], &[], "", "memory.limit", "1073741824 ");
    check(&["memory=auto"], &["RINGMAIN_MEMORY__LIMIT=1G"], "", "memory.limit", "auto [--memory]");
    check(&["cores=2-3,0,2"], &[], "", "shard.cores", "0,2,3 ");
    check(&[], &[], "[shard]\ncores = [0, 2]\n", "shard.cores", "0,2 ");
    check(&[], &[], "[log]\nsegment_bytes = 8_388_608\n", "log.segment_bytes", "8388608 ");
    check(&["admin=off"], &[], "", "admin.listen", "off ");
    check(&[], &[], "[security]\ninsecure = true\n", "security.insecure", "true ");
}

#[test]
fn every_knob_takes_its_own_default() {
    for knob in KNOBS {
        let mut config = ServeConfig::default();
        (knob.set)(&mut config, &knob.default_value()).unwrap_or_else(|e| panic!("{}: {e}", knob.key));
        assert_eq!(config, ServeConfig::default(), "{}", knob.key);
        assert_eq!(knob.key.matches('.').count(), 1, "{}: section.key", knob.key);
    }
}
