//! What comes over the wire broken or overgrown: the answer of the protocol, and nothing stored.

use talon_proto::{Index, Range, VeloMessage};
use talon_wire::{Blobs, MessageList};

use crate::bench::{Answer, Bench, checkin};
use crate::collections::chunk;
use crate::front::Front;

const QUERY: &str = "Test.Client/A";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_that_are_cut_or_too_long_change_nothing() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let front = Front::new(&bench).await;
    let before = bench.objects();
    let packet = agent.seal(&[agent.rows(flow.as_str(), QUERY, 0, 2)]);
    for path in ["/control", "/reader"] {
        for (body, status) in [
            (&packet[..packet.len() / 2], 403),
            (&packet[..packet.len() - 1], 403),
            (&packet[..1], 403),
            (&b""[..], 406),
            (&[&packet[..], b"\0"].concat(), 403),
            (&vec![0_u8; 20 << 20], 403),
        ] {
            let exchange = front.post(path, body).await;
            assert_eq!((exchange.status, exchange.end), (Some(status), "complete"), "{path}: {} bytes", body.len());
        }
    }
    assert_eq!(bench.objects(), before);
    assert_eq!(front.post("/control", &packet).await.status, Some(200));
    assert_eq!(bench.flow_rows(&agent, &flow, QUERY).len(), 2, "the session is as good as before");
}

#[tokio::test]
async fn a_bomb_of_rows_is_refused() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let before = bench.objects();
    // Rows that say to be few and unfold into many bytes.
    let mut message = agent.rows(flow.as_str(), QUERY, 0, 1);
    let response = message.vql_response.as_mut().unwrap();
    response.jsonl_response.clear();
    response.uncompressed_size = 100;
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut zlib, &vec![b' '; 8 << 20]).unwrap();
    response.compressed_json_response = zlib.finish().unwrap().into();
    assert_eq!(agent.send(std::slice::from_ref(&message)).await, Answer::Refused);
    // The same, and the claim is beyond all bounds.
    message.vql_response.as_mut().unwrap().uncompressed_size = (100 << 20) + 1;
    assert_eq!(agent.send(&[message]).await, Answer::Refused);
    // A blob that unfolds beyond the limit.
    let mut list = MessageList::default();
    list.push_list(&vec![0; (100 << 20) + 1]);
    assert_eq!(agent.post(agent.seal_blobs(&Blobs::compressed([list]).unwrap())).await, Answer::Refused);
    assert_eq!(bench.objects(), before);
}

#[tokio::test]
async fn tasks_are_handed_out_on_the_reader_only() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    agent.poll().await;
    let (flow, _) = bench.root().collect(crate::bench::request(&agent, "Test.Client")).unwrap();
    let front = Front::new(&bench).await;
    let answer = front.post("/control", &agent.seal(&[checkin(u64::MAX)])).await;
    assert_eq!(answer.status, Some(200));
    assert_eq!(agent.open(answer.body.into()), Vec::<VeloMessage>::new(), "an empty list and nothing more");
    let given = agent.poll().await;
    assert!(given.iter().any(|message| message.session_id == flow.as_str() && message.flow_request.is_some()), "{given:?}");
}

#[tokio::test]
async fn a_sparse_upload_is_listed_with_its_index() {
    let bench = Bench::new();
    let agent = bench.enrolled(1).await;
    let flow = bench.collecting(&agent, "Test.Client").await;
    let session = flow.as_str();
    let sparse = |offset, data, eof| {
        let mut message = chunk(session, &["sparse.bin"], offset, data, eof);
        let buffer = message.file_buffer.as_mut().unwrap();
        (buffer.size, buffer.stored_size, buffer.is_sparse) = (26, 11, true);
        message
    };
    assert_eq!(agent.send(&[sparse(0, b"01234", false), sparse(5, b"klmnop", false)]).await, Answer::Acknowledged);
    let range = |original_offset, length, file_offset, file_length| Range { original_offset, length, file_offset, file_length };
    let mut last = sparse(11, b"", true);
    let ranges = vec![range(0, 5, 0, 5), range(5, 15, 5, 0), range(20, 6, 5, 6)];
    last.file_buffer.as_mut().unwrap().index = Some(Index { ranges });
    assert_eq!(agent.send(&[last]).await, Answer::Acknowledged);
    let rows = bench.rows(&talon_server::flow_uploads(&agent.target(), &flow));
    let rows: Vec<serde_json::Value> = rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect();
    assert_eq!(rows.iter().map(|row| row["Type"].as_str().unwrap()).collect::<Vec<_>>(), ["", "idx"]);
    assert_eq!((&rows[0]["file_size"], &rows[0]["uploaded_size"]), (&26.into(), &11.into()));
    assert!(rows[1]["vfs_path"].as_str().unwrap().ends_with("sparse.bin.idx"));
    assert_eq!(rows[1]["_ranges"][1]["file_length"], 0);
}
