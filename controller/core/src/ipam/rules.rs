//! To whom a Subnet hands out addresses that nobody named, and when.

use std::collections::BTreeMap;

use lb_svc_crds::bounded::cut;
use lb_svc_crds::names;

/// The most bytes of an annotation's name or value that a message has.
const TEXT_MAX: usize = 80;
/// The most problems that are named.
const PROBLEMS_MAX: usize = 4;

/// What the annotations of a Subnet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The lowest comes first, 0 last.
    pub priority: u32,
    /// Whether it serves requests that name neither it nor an address in it.
    pub auto_assign: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self { priority: 0, auto_assign: true }
    }
}

impl Rules {
    /// Reads them, and says what cannot be read. A Subnet whose `auto-assign` cannot be
    /// read is for those who name it: it was meant to be for few.
    pub fn parse(annotations: &BTreeMap<String, String>) -> (Self, Vec<String>) {
        let (mut rules, mut problems) = (Self::default(), Vec::new());
        for (name, value) in annotations {
            let shown = || format!("annotation {}: {:?}", cut(name, TEXT_MAX), cut(value, TEXT_MAX));
            match name.as_str() {
                names::PRIORITY_ANNOTATION => match value.parse() {
                    Ok(priority) => rules.priority = priority,
                    Err(_) => problems.push(format!("{} is no number, and 0 is taken", shown())),
                },
                names::AUTO_ASSIGN_ANNOTATION => {
                    rules.auto_assign = value == "true";
                    if !matches!(value.as_str(), "true" | "false") {
                        problems
                            .push(format!("{} is neither \"true\" nor \"false\", which is taken", shown()));
                    }
                }
                name if names::is_ours(name) => {
                    problems.push(format!("annotation {} means nothing on a Subnet", cut(name, TEXT_MAX)));
                }
                _ => {}
            }
        }
        problems.truncate(PROBLEMS_MAX);
        (rules, problems)
    }

    /// Sorts Subnets: the ones to be tried first have the least.
    pub fn order(self) -> (bool, u32) {
        (self.priority == 0, self.priority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(annotations: &[(&str, &str)]) -> (u32, bool, usize) {
        let annotations = annotations.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let (Rules { priority, auto_assign }, problems) = Rules::parse(&annotations);
        (priority, auto_assign, problems.len())
    }

    #[test]
    fn rules_are_read_and_what_cannot_be_is_said() {
        let (priority, auto) = (names::PRIORITY_ANNOTATION, names::AUTO_ASSIGN_ANNOTATION);
        assert_eq!(parse(&[("kubectl.kubernetes.io/last-applied-configuration", "{}")]), (0, true, 0));
        assert_eq!(parse(&[(priority, "7"), (auto, "false")]), (7, false, 0));
        assert_eq!(parse(&[(priority, "-1"), (auto, "true")]), (0, true, 1));
        assert_eq!(parse(&[(auto, "no")]), (0, false, 1));
        assert_eq!(parse(&[("lb-svc.kubeovn.io/prioritty", "7")]), (0, true, 1));
    }
}
