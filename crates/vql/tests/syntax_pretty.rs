//! The pretty form by example.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use expect_test::expect;
use talon_vql::format::{quote_name, quote_string, reformat};
use talon_vql::parse_expression;

#[test]
fn clauses_and_columns_have_lines_of_their_own() {
    for (text, expected) in [
        (
            "SELECT A,B,C\nFROM info(arg1=Foobar, arg2=\"XXXXX\")",
            "SELECT A,\n       B,\n       C\nFROM info(arg1=Foobar, arg2=\"XXXXX\")\n",
        ),
        ("SELECT A,B,C      FROM info()", "SELECT A,\n       B,\n       C\nFROM info()\n"),
        ("SELECT A FROM scope()", "SELECT A\nFROM scope()\n"),
        ("SELECT * FROM info()", "SELECT *\nFROM info()\n"),
    ] {
        assert_eq!(reformat(text).unwrap(), expected);
    }
}

#[test]
fn long_things_break_and_comments_stay() {
    let text = r#"// Find files.
// Second line.

LET Files = SELECT * FROM glob(globs=X) LET Short(a, b=2) = a + b -- trailing
LET Hits(Globs) = SELECT OSPath, Size, timestamp(epoch=Mtime) AS Mtime FROM glob(globs=Globs, root="/", accessor="auto") WHERE Size > 10 AND NOT IsDir


SELECT * FROM foreach(row={
   -- every file
   SELECT * FROM Hits(Globs=SearchGlobs) }, query={ SELECT OSPath /* where */, read_file(filename=OSPath, length=100, accessor=MyAccessor) AS Data FROM scope()
   WHERE Data =~ 'abc' OR Data =~ 'def' OR Data =~ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' -- last
 }, workers=[1,2]) WHERE NOT (A = 1 AND
 -- why
 B = 2) ORDER BY OSPath DESC LIMIT 50
/* the end */"#;
    let printed = reformat(text).unwrap();
    expect![[r#"
        // Find files.
        // Second line.

        LET Files = SELECT * FROM glob(globs=X)
        LET Short(a, b=2) = a + b
        -- trailing
        LET Hits(Globs) =
          SELECT OSPath,
                 Size,
                 timestamp(epoch=Mtime) AS Mtime
          FROM glob(globs=Globs, root="/", accessor="auto")
          WHERE Size > 10 AND NOT IsDir

        SELECT *
        FROM foreach(
          row={
            -- every file
            SELECT *
            FROM Hits(Globs=SearchGlobs)
          },
          query={
            SELECT OSPath,
                   /* where */
                   read_file(filename=OSPath, length=100, accessor=MyAccessor) AS Data
            FROM scope()
            WHERE Data =~ 'abc'
              OR Data =~ 'def'
              OR Data =~ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'
            -- last
          },
          workers=[1, 2])
        WHERE NOT (A = 1
           -- why
           AND B = 2)
        ORDER BY OSPath DESC
        LIMIT 50
        /* the end */
    "#]]
    .assert_eq(&printed);
    assert_eq!(reformat(&printed).unwrap(), printed);
}

#[test]
fn quoted_names_and_strings_mean_themselves() {
    assert_eq!(quote_name("Abc_1"), "Abc_1");
    assert_eq!(quote_name("select"), "`select`");
    for name in ["a b", "1x", "X.Y", "a-b", "é", "a\\nb", "a`b", "from"] {
        let talon_vql::ast::ExprKind::Symbol(symbol) = parse_expression(&quote_name(name)).unwrap().kind else { panic!() };
        assert_eq!(&*symbol.path[0].name, name);
    }
    for text in ["", "a", "\"q\" 'p' \\d\n\r\t\u{0}é", "''' --"] {
        let talon_vql::ast::ExprKind::String(string) = parse_expression(&quote_string(text)).unwrap().kind else { panic!() };
        assert_eq!(&*string.value, text.as_bytes());
    }
}
