//! The health check of a Service's endpoints: its annotations, read and checked.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use jiff::SignedDuration;
use lb_svc_crds::gateway::HealthCheck;
use lb_svc_crds::names;
use lb_svc_crds::reason::Reason;

use crate::model::{Problem, ServicePort};

/// The annotations of a health check; all but the first have defaults.
pub const ANNOTATIONS: [&str; 7] = [
    names::HEALTH_CHECK_ANNOTATION,
    names::HEALTH_CHECK_PATH_ANNOTATION,
    names::HEALTH_CHECK_PORT_ANNOTATION,
    names::HEALTH_CHECK_INTERVAL_ANNOTATION,
    names::HEALTH_CHECK_TIMEOUT_ANNOTATION,
    names::HEALTH_CHECK_RISE_ANNOTATION,
    names::HEALTH_CHECK_FALL_ANNOTATION,
];

/// In milliseconds, as all times here.
const INTERVAL: u32 = 5_000;
const TIMEOUT: u32 = 2_000;
const TIMES: RangeInclusive<u32> = 100..=300_000;
const RISE: u32 = 2;
const FALL: u32 = 3;
const COUNTS: RangeInclusive<u32> = 1..=10;
/// The longest path, in bytes.
const PATH_MAX: usize = 1024;

/// The warning that a health check has no effect, and why.
pub fn ignored(why: &str) -> Problem {
    Problem::new(
        Reason::HealthCheckIgnored,
        format!("annotation {} has no effect {why}", names::HEALTH_CHECK_ANNOTATION),
    )
}

/// Reads the health check that the annotations of a Service with these ports ask
/// for, if they do. An invalid value is replaced by its default and added to
/// `warnings`.
pub fn check(
    annotations: &BTreeMap<String, String>,
    ports: &[ServicePort],
    warnings: &mut Vec<Problem>,
) -> Option<HealthCheck> {
    let [kind, path, port, interval, timeout, rise, fall] = ANNOTATIONS;
    let in_vain = |name: &str, why: &str| {
        let has = annotations.contains_key(name);
        has.then(|| {
            Problem::new(Reason::HealthCheckIgnored, format!("annotation {name} has no effect {why}"))
        })
    };
    let Some(said) = annotations.get(kind) else {
        let without = format!("without {kind}");
        warnings.extend(ANNOTATIONS.into_iter().filter_map(|name| in_vain(name, &without)));
        return None;
    };
    let mut wrong = |name: &str, why: String| {
        warnings.push(Problem::new(Reason::InvalidAnnotation, format!("annotation {name}: {why}")));
    };
    let is_http = match said.as_str() {
        "tcp" => false,
        "http" => true,
        other => {
            wrong(kind, format!("{other:?} is neither \"tcp\" nor \"http\""));
            return None;
        }
    };
    let mut read = |name: &str, parse: fn(&str) -> Result<u32, String>| {
        let value = annotations.get(name).map(|text| parse(text.trim()));
        value.and_then(|value| value.map_err(|why| wrong(name, why)).ok())
    };
    let interval_ms = read(interval, milliseconds).unwrap_or(INTERVAL);
    let asked = read(timeout, milliseconds);
    let (rise, fall) = (read(rise, count).unwrap_or(RISE), read(fall, count).unwrap_or(FALL));
    if asked.is_some_and(|asked| asked > interval_ms) {
        wrong(timeout, format!("it is longer than {interval}"));
    }
    let timeout_ms = asked.unwrap_or(TIMEOUT).min(interval_ms);
    let asked = annotations.get(path).map_or("/", String::as_str);
    let is_path = |text: &str| {
        text.starts_with('/') && text.len() <= PATH_MAX && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let path = match is_http {
        true if is_path(asked) => Some(asked.to_owned()),
        true => {
            wrong(path, format!("{asked:?} is no path of printable characters that begins with /"));
            Some("/".to_owned())
        }
        false => {
            warnings.extend(in_vain(path, "with tcp"));
            None
        }
    };
    let port = annotations.get(port).and_then(|text| {
        let text = text.trim();
        let number = text.parse().ok();
        let is = |of: &&ServicePort| of.protocol == "TCP" && (number == Some(of.port) || text == of.name);
        let found = ports.iter().find(is).map(|of| of.port).filter(|_| !text.is_empty());
        if found.is_none() {
            let message =
                format!("annotation {port}: {text:?} is no TCP port of the Service, by number or name");
            warnings.push(Problem::new(Reason::InvalidAnnotation, message));
        }
        found
    });
    Some(HealthCheck { path, port, interval_ms, timeout_ms, rise, fall })
}

/// Parses a duration as Go writes it, such as `1m30s`, into milliseconds.
fn milliseconds(text: &str) -> Result<u32, String> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|time| u32::try_from(time.as_millis()).ok());
    parsed
        .filter(|time| TIMES.contains(time))
        .ok_or_else(|| format!("{text:?} is no duration from 100ms to 300s"))
}

fn count(text: &str) -> Result<u32, String> {
    let parsed = text.parse().ok().filter(|count| COUNTS.contains(count));
    parsed.ok_or_else(|| format!("{text:?} is no number from {} to {}", COUNTS.start(), COUNTS.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What annotations with these last words say, and the reasons and
    /// annotations of what is wrong with them.
    fn read(annotations: &[(&str, &str)]) -> (Option<HealthCheck>, Vec<(String, String)>) {
        let name = |last: &str| format!("{}/health-check{last}", names::DOMAIN);
        let annotations = annotations.iter().map(|(last, value)| (name(last), (*value).to_owned())).collect();
        let mut warnings = Vec::new();
        let check = check(&annotations, &ports(), &mut warnings);
        let wrong = warnings.into_iter().map(|limit| {
            let name = limit.message.split([' ', ':']).nth(1).unwrap_or_default();
            (limit.reason, name.rsplit('/').next().unwrap_or_default().replace("health-check", ""))
        });
        (check, wrong.collect())
    }

    fn ports() -> [ServicePort; 3] {
        let port = |name: &str, protocol: &str, port| ServicePort {
            name: name.into(),
            protocol: protocol.into(),
            port,
        };
        [port("http", "TCP", 80), port("https", "TCP", 443), port("dns", "UDP", 53)]
    }

    fn plain() -> HealthCheck {
        HealthCheck { path: None, port: None, interval_ms: 5000, timeout_ms: 2000, rise: 2, fall: 3 }
    }

    #[test]
    fn health_check_is_read_with_defaults() {
        assert_eq!(read(&[]), (None, vec![]));
        assert_eq!(read(&[("", "tcp")]), (Some(plain()), vec![]));
        let path = |path: &str| Some(HealthCheck { path: Some(path.into()), ..plain() });
        assert_eq!(read(&[("", "http")]), (path("/"), vec![]));
        assert_eq!(read(&[("", "http"), ("-path", "/healthz?full=1")]), (path("/healthz?full=1"), vec![]));
        let all =
            [("", "tcp"), ("-interval", "1m30s"), ("-timeout", " 1.5s "), ("-rise", "1"), ("-fall", "10")];
        let check =
            HealthCheck { path: None, port: None, interval_ms: 90_000, timeout_ms: 1500, rise: 1, fall: 10 };
        assert_eq!(read(&all), (Some(check), vec![]));
        let quick = HealthCheck { interval_ms: 100, timeout_ms: 100, ..plain() };
        assert_eq!(read(&[("", "tcp"), ("-interval", "100ms")]), (Some(quick), vec![]));
    }

    #[test]
    fn invalid_health_check_falls_back_to_default() {
        let invalid = |last: &str| vec![("InvalidAnnotation".to_owned(), last.to_owned())];
        assert_eq!(read(&[("", "udp")]), (None, invalid("")));
        for time in ["99ms", "301s", "5", "-5s", "soon", ""] {
            assert_eq!(read(&[("", "tcp"), ("-interval", time)]), (Some(plain()), invalid("-interval")));
            assert_eq!(read(&[("", "tcp"), ("-timeout", time)]), (Some(plain()), invalid("-timeout")));
        }
        for count in ["0", "11", "-1", "two"] {
            assert_eq!(read(&[("", "tcp"), ("-rise", count)]), (Some(plain()), invalid("-rise")));
            assert_eq!(read(&[("", "tcp"), ("-fall", count)]), (Some(plain()), invalid("-fall")));
        }
        let slow = HealthCheck { timeout_ms: 5000, ..plain() };
        assert_eq!(read(&[("", "tcp"), ("-timeout", "6s")]), (Some(slow), invalid("-timeout")));
        let root = HealthCheck { path: Some("/".into()), ..plain() };
        for path in ["healthz", "/a b", "/a\r\nX: y", "/ä", ""] {
            let read = read(&[("", "http"), ("-path", path)]);
            assert_eq!(read, (Some(root.clone()), invalid("-path")), "{path:?}");
        }
    }

    #[test]
    fn b15_port_is_named_by_number_or_name() {
        for (text, port) in [("80", 80), ("443", 443), (" https ", 443)] {
            let check = HealthCheck { port: Some(port), ..plain() };
            assert_eq!(read(&[("", "tcp"), ("-port", text)]), (Some(check), vec![]));
        }
        // Unknown ones, and one that cannot be asked.
        for text in ["8443", "metrics", "53", "dns", "0", ""] {
            let invalid = vec![("InvalidAnnotation".to_owned(), "-port".to_owned())];
            assert_eq!(read(&[("", "tcp"), ("-port", text)]), (Some(plain()), invalid), "{text:?}");
        }
        assert_eq!(
            read(&[("-port", "80")]),
            (None, vec![("HealthCheckIgnored".to_owned(), "-port".to_owned())])
        );
    }

    #[test]
    fn ineffective_health_check_is_reported() {
        let ignored = |last: &str| vec![("HealthCheckIgnored".to_owned(), last.to_owned())];
        assert_eq!(read(&[("-path", "/")]), (None, ignored("-path")));
        assert_eq!(read(&[("-fall", "x")]), (None, ignored("-fall")));
        assert_eq!(read(&[("", "tcp"), ("-path", "/")]), (Some(plain()), ignored("-path")));
    }
}
