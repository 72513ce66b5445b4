use super::*;

#[test]
fn an_empty_file_publishes_nothing() {
    for text in ["", "{}", "# nothing\n", "---\n", "publish:\nservices:\n"] {
        assert_eq!(
            parse("redirector.yaml", text),
            Ok(Config::default()),
            "{text:?}"
        );
    }
}
