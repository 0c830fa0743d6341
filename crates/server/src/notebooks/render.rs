//! What a cell shows: text as HTML without any HTML of its own, and places where tables go.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd, html};
use talon_proto::NotebookCell;

/// Text as HTML. Markup in the text is shown, not obeyed; links lead to the web or to this server only.
pub(super) fn markdown(text: &str) -> String {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    let shown = Parser::new_ext(text, options).map(|event| match event {
        Event::Html(text) | Event::InlineHtml(text) => Event::Text(text),
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            let dest_url = if is_harmless(&dest_url) { dest_url } else { "".into() };
            Event::Start(Tag::Link { link_type, dest_url, title, id })
        }
        Event::Start(Tag::Image { link_type, dest_url, title, id }) => {
            let dest_url = if is_harmless(&dest_url) { dest_url } else { "".into() };
            Event::Start(Tag::Image { link_type, dest_url, title, id })
        }
        other => other,
    });
    let mut out = String::new();
    html::push_html(&mut out, shown);
    out
}

fn is_harmless(link: &str) -> bool {
    let scheme = link.split(['/', '?', '#']).next().unwrap_or_default();
    match scheme.split_once(':') {
        None => true,
        Some((scheme, _)) => matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https" | "mailto"),
    }
}

/// The first heading of a text, which stands for the cell in lists.
pub(super) fn summary(text: &str) -> String {
    let mut heading = None;
    for event in Parser::new(text) {
        match (event, &mut heading) {
            (Event::Start(Tag::Heading { .. }), None) => heading = Some(String::new()),
            (Event::End(TagEnd::Heading(_)), Some(found)) => return std::mem::take(found),
            (Event::Text(text) | Event::Code(text), Some(found)) => found.push_str(&text),
            _ => {}
        }
    }
    String::new()
}

/// The place of one table of a cell, in the form that stock clients fill.
pub(super) fn table(cell: &NotebookCell, version: &str, number: u64, client: &str) -> String {
    let parameters = serde_json::json!({
        "notebook_id": cell.notebook_id,
        "client_id": client,
        "cell_id": format!("{}-{version}", cell.cell_id),
        "table_id": number,
        "TableOptions": {},
        "Version": cell.timestamp / 1_000_000_000,
    });
    let encoded: String = parameters.to_string().bytes().map(percent).collect();
    format!("<div class=\"panel\"><velo-csv-viewer base-url=\"'v1/GetTable'\" params='{encoded}' /></div>")
}

fn percent(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_shown_and_not_obeyed() {
        for (text, never) in [
            ("<script>alert(1)</script>", "<script"),
            ("a <img src=x onerror=alert(1)> b", "<img"),
            ("[x](javascript:alert(1))", "javascript:"),
            ("[x](JavaScript:alert(1))", "avaScript:"),
            ("![x](data:text/html;base64,AA)", "data:"),
            ("<div onclick=\"x\">\n\nhi\n</div>", "<div"),
        ] {
            let shown = markdown(text);
            assert!(!shown.contains(never), "{text} became {shown}");
        }
        assert_eq!(markdown("# A *b*"), "<h1>A <em>b</em></h1>\n");
        assert!(markdown("[x](https://example.com/a)").contains("href=\"https://example.com/a\""));
    }

    #[test]
    fn the_first_heading_is_the_summary() {
        assert_eq!(summary("text\n\n## The `first` one\n\n# Second"), "The first one");
        assert_eq!(summary("no heading"), "");
    }

    #[test]
    fn a_table_is_named_by_its_cell_and_version() {
        let cell = NotebookCell { notebook_id: "N.1".into(), cell_id: "NC.2".into(), timestamp: 3_000_000_000, ..NotebookCell::default() };
        let place = table(&cell, "V3", 1, "");
        assert!(place.contains("%22cell_id%22%3A%22NC.2-V3%22") && place.contains("%22Version%22%3A3"), "{place}");
    }
}
