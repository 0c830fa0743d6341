//! A walk over protobuf fields without a schema: counts and lengths are checked on the bytes, before anything is built from them.

/// A field's value as it stands in the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Number,
    Bytes(&'a [u8]),
}

/// The bytes are no protobuf message, or use groups, which no message here does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Takes the next field off `rest`.
pub(crate) fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<(u64, Value<'a>)>, Malformed> {
    if rest.is_empty() {
        return Ok(None);
    }
    let key = varint(rest)?;
    let value = match key & 7 {
        0 => {
            varint(rest)?;
            Value::Number
        }
        1 => {
            take(rest, 8)?;
            Value::Number
        }
        2 => {
            let length = varint(rest)?;
            Value::Bytes(take(rest, usize::try_from(length).map_err(|_| Malformed)?)?)
        }
        5 => {
            take(rest, 4)?;
            Value::Number
        }
        _ => return Err(Malformed),
    };
    Ok(Some((key >> 3, value)))
}

fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or(Malformed)?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (taken, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_come_in_order_and_damage_is_seen() {
        let mut rest = &[0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x1d, 1, 2, 3, 4, 0x21, 1, 2, 3, 4, 5, 6, 7, 8][..];
        assert_eq!(next(&mut rest), Ok(Some((1, Value::Number))));
        assert_eq!(next(&mut rest), Ok(Some((2, Value::Bytes(b"hi")))));
        assert_eq!(next(&mut rest), Ok(Some((3, Value::Number))));
        assert_eq!(next(&mut rest), Ok(Some((4, Value::Number))));
        assert_eq!(next(&mut rest), Ok(None));
        for bad in [&[0x08][..], &[0x12, 5, 1], &[0x0b], &[0xff; 11], &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]] {
            assert_eq!(next(&mut { bad }), Err(Malformed), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end(junk: Vec<u8>) {
            let mut rest = &junk[..];
            while let Ok(Some(_)) = next(&mut rest) {}
        }
    }
}
