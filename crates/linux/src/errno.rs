//! Names of errnos: what a person looks up in a manual is `EBUSY`, not 16.

use rustix::io::Errno;

macro_rules! names {
    ($($name:ident),* $(,)?) => {
        /// The name of an errno, `EBUSY` for 16; `None` for one that nothing here meets.
        #[must_use]
        pub fn errno_name(number: i32) -> Option<&'static str> {
            match Errno::from_raw_os_error(number) {
                $( Errno::$name => Some(concat!("E", stringify!($name))), )*
                // Rustix spells these two in its own way.
                Errno::TOOBIG => Some("E2BIG"),
                Errno::ACCESS => Some("EACCES"),
                _ => None,
            }
        }
    };
}

names!(
    PERM,
    NOENT,
    SRCH,
    INTR,
    IO,
    NXIO,
    BADF,
    AGAIN,
    NOMEM,
    FAULT,
    BUSY,
    EXIST,
    XDEV,
    NODEV,
    NOTDIR,
    ISDIR,
    INVAL,
    NFILE,
    MFILE,
    NOTTY,
    TXTBSY,
    FBIG,
    NOSPC,
    SPIPE,
    ROFS,
    MLINK,
    PIPE,
    DOM,
    RANGE,
    DEADLK,
    NAMETOOLONG,
    NOLCK,
    NOSYS,
    NOTEMPTY,
    LOOP,
    NOMSG,
    NODATA,
    TIME,
    NOLINK,
    PROTO,
    BADMSG,
    OVERFLOW,
    USERS,
    MSGSIZE,
    OPNOTSUPP,
    CONNREFUSED,
    CONNRESET,
    NOBUFS,
    TIMEDOUT,
    ALREADY,
    INPROGRESS,
    STALE,
    REMOTEIO,
    CANCELED,
    SHUTDOWN,
    NOTCONN,
    HOSTUNREACH,
    NETDOWN,
    ADDRINUSE,
);

/// The name where it has one, `errno N` otherwise.
#[must_use]
pub fn errno_text(number: i32) -> String {
    errno_name(number).map_or_else(|| format!("errno {number}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_headers() {
        for (number, name) in [
            (1, "EPERM"),
            (13, "EACCES"),
            (16, "EBUSY"),
            (34, "ERANGE"),
            (7, "E2BIG"),
            (95, "EOPNOTSUPP"),
            (87, "EUSERS"),
        ] {
            assert_eq!(errno_name(number), Some(name));
        }
        assert_eq!(errno_text(4000), "errno 4000");
    }
}
