mod accepted;
mod conflicts;
mod refused;
mod schema;
mod services;

use super::*;

fn config(text: &str) -> Config {
    match parse("redirector.yaml", text) {
        Ok(config) => config,
        Err(error) => panic!("{text}\n{error}"),
    }
}

/// All lines of the error.
fn problems(text: &str) -> Vec<String> {
    match parse("redirector.yaml", text) {
        Ok(config) => panic!("accepted: {text}\n{config:?}"),
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
    }
}
