//! One reader under libFuzzer: `make fuzz`.
//!
//! `FUZZ_TARGET` names it; its seeds are written into the directory `FUZZ_CORPUS`.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod fuzzing {
    use std::path::Path;
    use std::sync::LazyLock;

    use lb_svc_fuzz::{Target, target};

    static TARGET: LazyLock<&Target> = LazyLock::new(|| {
        let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET");
        target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET: there is no target {name:?}"))
    });

    fn write_seeds() {
        let corpus = std::env::var_os("FUZZ_CORPUS").expect("FUZZ_CORPUS");
        for (number, seed) in (TARGET.seeds)().into_iter().enumerate() {
            let file = Path::new(&corpus).join(format!("seed-{number}"));
            std::fs::write(&file, seed).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }

    libfuzzer_sys::fuzz_target!(init: write_seeds(), |input: &[u8]| (TARGET.read)(input));
}

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    eprintln!("This program does its work only when it is built by `make fuzz`.");
    std::process::ExitCode::from(2)
}
