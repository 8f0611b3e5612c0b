// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of verbs, from which parsing, help and completion come.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::text;

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    /// Creates a domain.
    Create,
    /// Lists domains.
    List,
    /// Tells of the machine.
    Info,
    /// Tells what is wrong with the machine.
    Doctor,
    /// Connects with a guest's console.
    Console,
    /// Asks a guest to power off.
    Shutdown,
    /// Asks a guest to restart.
    Reboot,
    /// Ends a guest at once.
    Destroy,
    /// Stops a guest's vcpus.
    Pause,
    /// Lets them run again.
    Unpause,
    /// Name to number.
    Domid,
    /// Number to name.
    Domname,
    /// Gives another name.
    Rename,
    /// Lists vcpus.
    VcpuList,
    /// Sets the vcpus online.
    VcpuSet,
    /// Sets the CPUs that a vcpu may run on.
    VcpuPin,
    /// Shows or sets the share of the CPUs.
    Sched,
    /// Sets a guest's memory.
    MemSet,
    /// Limits a guest's memory.
    MemMax,
    /// Gives a guest the configuration of its next start.
    ConfigUpdate,
    /// Presses a key of Linux's magic SysRq.
    Sysrq,
    /// Shows the hypervisor's log.
    Dmesg,
    /// How long domains have run.
    Uptime,
    /// What domains use, live.
    Top,
    /// Lists disks.
    BlockList,
    /// Adds a disk.
    BlockAttach,
    /// Removes a disk.
    BlockDetach,
    /// Lists network interfaces.
    NetworkList,
    /// Adds a network interface.
    NetworkAttach,
    /// Removes a network interface.
    NetworkDetach,
    /// Lists bridges.
    BridgeList,
    /// Shows xenstore's tree.
    XenstoreLs,
    /// Reads nodes.
    XenstoreRead,
    /// Writes nodes.
    XenstoreWrite,
    /// Removes nodes.
    XenstoreRm,
    /// Lists a node's children.
    XenstoreList,
    /// Shows changes.
    XenstoreWatch,
    /// Clears the screen.
    Clear,
    /// Shows the lines that were entered.
    History,
    /// Explains verbs.
    Help,
    /// Ends everything.
    Poweroff,
}

/// An option of a verb.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// The letter behind `-`.
    pub short: Option<char>,
    /// The word behind `--`.
    pub long: &'static str,
    /// What its value is called, if it has one.
    pub value: Option<&'static str>,
    /// What it does.
    pub help: &'static str,
}

/// What a word of a command is, for completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// A configuration file.
    File,
    /// Any domain.
    Domain,
    /// A domain other than the control domain.
    Guest,
    /// A node of xenstore.
    Node,
    /// A verb.
    Verb,
    /// A disk of the guest named before.
    Disk,
    /// A network interface of the guest named before.
    Vif,
    /// Something that nobody can guess.
    Other,
}

/// A verb.
#[derive(Clone, Copy, Debug)]
pub struct Verb {
    /// Which.
    pub id: Id,
    /// Its name.
    pub name: &'static str,
    /// What follows the name.
    pub args: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// More to know.
    pub details: &'static str,
    /// Its options, `--help` aside.
    pub options: &'static [Opt],
    /// What its words are; the last is for all that follow.
    pub words: &'static [Word],
    /// How few and how many words it takes.
    pub count: (usize, usize),
}

const fn flag(short: char, long: &'static str, help: &'static str) -> Opt {
    Opt {
        short: Some(short),
        long,
        value: None,
        help,
    }
}

/// What every verb takes.
const JSON: Opt = Opt {
    short: None,
    long: "json",
    value: None,
    help: "as JSON, for programs",
};
const WAIT: Opt = flag('w', "wait", "wait until it has stopped");
const TIMEOUT: Opt = Opt {
    short: Some('t'),
    long: "timeout",
    value: Some("SECONDS"),
    help: "wait no longer than this, and fail then",
};
const MANY: usize = 64;

const fn verb(
    id: Id,
    name: &'static str,
    args: &'static str,
    count: (usize, usize),
    words: &'static [Word],
    options: &'static [Opt],
    summary: &'static str,
) -> Verb {
    Verb {
        id,
        name,
        args,
        summary,
        details: "",
        options,
        words,
        count,
    }
}

impl Verb {
    const fn more(self, details: &'static str) -> Self {
        Self { details, ..self }
    }
}

/// All verbs, in the order in which help shows them.
pub const VERBS: &[Verb] = &[
    verb(
        Id::Create,
        "create",
        "FILE [KEY=VALUE]...",
        (1, MANY),
        &[Word::File, Word::Other],
        &[
            flag('c', "console", "connect with its console"),
            flag('p', "paused", "leave it paused"),
            flag(
                'n',
                "dryrun",
                "read and check the configuration, and show what it means",
            ),
            flag('d', "debug", "show what the configuration means, and create it"),
            flag('q', "quiet", "say nothing but errors"),
            flag('F', "foreground", "wait until it is gone, or Ctrl-C"),
        ],
        "create a guest from a configuration file",
    )
    .more(
        "A FILE without a folder is looked for in /guests, with or without \".cfg\".\n\
         KEY=VALUE replaces a setting of the file, for instance memory=512 or\n\
         \"disk=['/guests/a.img,raw,xvda,w']\".",
    ),
    verb(
        Id::List,
        "list",
        "[DOMAIN]...",
        (0, MANY),
        &[Word::Domain],
        &[
            flag('l', "long", "all that is known, as JSON"),
            flag('v', "verbose", "with UUID, and why it stopped"),
        ],
        "list domains",
    )
    .more(
        "State: r running, b blocked, p paused, s shut down, c crashed, d dying.\n\
         Time: seconds that its vcpus have run.",
    ),
    verb(
        Id::Info,
        "info",
        "",
        (0, 0),
        &[],
        &[flag('n', "numa", "with the nodes of memory")],
        "tell of the machine and the hypervisor",
    ),
    verb(
        Id::Doctor,
        "doctor",
        "",
        (0, 0),
        &[],
        &[],
        "tell what of the machine works and what does not",
    )
    .more(
        "Lines with a ! are wrong, those with a ? may be. It fails if something is\n\
         wrong.",
    ),
    verb(
        Id::Console,
        "console",
        "GUEST",
        (1, 1),
        &[Word::Guest],
        &[
            Opt {
                short: Some('t'),
                long: "type",
                value: Some("TYPE"),
                help: "pv or vuart",
            },
            Opt {
                short: Some('n'),
                long: "num",
                value: Some("NUMBER"),
                help: "which console; a guest has number 0",
            },
        ],
        "connect with a guest's console; leave with Ctrl-]",
    )
    .more(
        "What the guest printed before is shown first. PV console and virtual UART\n\
         are shown as one; what is typed goes where the guest printed last.",
    ),
    verb(
        Id::Shutdown,
        "shutdown",
        "GUEST... | -a",
        (0, MANY),
        &[Word::Guest],
        &[
            WAIT,
            TIMEOUT,
            flag('a', "all", "all guests"),
            flag('F', "fallback", "as xl's; there is no ACPI that it could fall back to"),
        ],
        "ask guests to power off",
    ),
    verb(
        Id::Reboot,
        "reboot",
        "GUEST... | -a",
        (0, MANY),
        &[Word::Guest],
        &[
            WAIT,
            TIMEOUT,
            flag('a', "all", "all guests"),
            flag('F', "force", "do not ask: destroy it and create it anew"),
        ],
        "ask guests to restart",
    ),
    verb(
        Id::Destroy,
        "destroy",
        "GUEST...",
        (1, MANY),
        &[Word::Guest],
        &[],
        "end guests at once",
    )
    .more("GUEST may have * and ? in it, for all guests whose names match; so may\nGUEST of pause, unpause, shutdown and reboot."),
    verb(
        Id::Pause,
        "pause",
        "GUEST...",
        (1, MANY),
        &[Word::Guest],
        &[],
        "stop guests for a while",
    ),
    verb(
        Id::Unpause,
        "unpause",
        "GUEST...",
        (1, MANY),
        &[Word::Guest],
        &[],
        "let paused guests go on",
    ),
    verb(
        Id::Domid,
        "domid",
        "NAME",
        (1, 1),
        &[Word::Domain],
        &[],
        "tell a domain's number",
    ),
    verb(
        Id::Domname,
        "domname",
        "NUMBER",
        (1, 1),
        &[Word::Other],
        &[],
        "tell a domain's name",
    ),
    verb(
        Id::Rename,
        "rename",
        "GUEST NAME",
        (2, 2),
        &[Word::Guest, Word::Other],
        &[],
        "give a guest another name",
    ),
    verb(
        Id::VcpuList,
        "vcpu-list",
        "[DOMAIN]...",
        (0, MANY),
        &[Word::Domain],
        &[],
        "list vcpus",
    ),
    verb(
        Id::VcpuSet,
        "vcpu-set",
        "GUEST COUNT",
        (2, 2),
        &[Word::Guest, Word::Other],
        &[],
        "tell a guest how many vcpus to use",
    )
    .more("The guest takes them off and on itself."),
    verb(
        Id::VcpuPin,
        "vcpu-pin",
        "GUEST VCPU|all CPUS|all [-|all]",
        (3, 4),
        &[Word::Domain, Word::Other],
        &[flag('f', "force", "as xl's; nothing has to be forced here")],
        "set the CPUs that vcpus may run on",
    )
    .more("CPUS is as in a configuration, for instance 0-3,^2. There is no soft affinity."),
    verb(
        Id::Sched,
        "sched-credit2",
        "",
        (0, 0),
        &[],
        &[
            Opt {
                short: Some('d'),
                long: "domain",
                value: Some("DOMAIN"),
                help: "this domain only",
            },
            Opt {
                short: Some('w'),
                long: "weight",
                value: Some("WEIGHT"),
                help: "set its share: 1 to 65535, where 256 is usual",
            },
        ],
        "show or set domains' shares of the CPUs",
    ),
    verb(
        Id::MemSet,
        "mem-set",
        "GUEST SIZE",
        (2, 2),
        &[Word::Guest, Word::Other],
        &[],
        "tell a guest how much memory to use",
    )
    .more("SIZE is in MiB, or with k, m or g behind it in KiB, MiB or GiB."),
    verb(
        Id::MemMax,
        "mem-max",
        "GUEST SIZE",
        (2, 2),
        &[Word::Guest, Word::Other],
        &[],
        "limit what memory a guest may have",
    )
    .more("SIZE is as for mem-set. The next mem-set limits it anew."),
    verb(
        Id::ConfigUpdate,
        "config-update",
        "GUEST FILE [KEY=VALUE]...",
        (2, MANY),
        &[Word::Guest, Word::File, Word::Other],
        &[],
        "give a guest the configuration of its next start",
    )
    .more("It keeps its name and its UUID."),
    verb(
        Id::Sysrq,
        "sysrq",
        "GUEST LETTER",
        (2, 2),
        &[Word::Guest, Word::Other],
        &[],
        "press a key of Linux's magic SysRq in a guest",
    ),
    verb(
        Id::Dmesg,
        "dmesg",
        "",
        (0, 0),
        &[],
        &[flag('c', "clear", "and clear it")],
        "show the hypervisor's log",
    ),
    verb(
        Id::Uptime,
        "uptime",
        "[DOMAIN]...",
        (0, MANY),
        &[Word::Domain],
        &[],
        "tell how long domains have run",
    ),
    verb(
        Id::Top,
        "top",
        "",
        (0, 0),
        &[],
        &[
            flag('1', "once", "show it once, of a time of --delay"),
            Opt {
                short: Some('d'),
                long: "delay",
                value: Some("SECONDS"),
                help: "how often; 2 if not given",
            },
        ],
        "show what domains use, until q or Ctrl-C",
    )
    .more(
        "Columns are xentop's. NETTX is what the guest sent. CPU(%) is of one CPU, at\n\
         first since its creation. With --json it shows once.",
    ),
    verb(
        Id::BlockList,
        "block-list",
        "GUEST...",
        (1, MANY),
        &[Word::Guest],
        &[],
        "list disks",
    ),
    verb(
        Id::BlockAttach,
        "block-attach",
        "GUEST DISK...",
        (2, MANY),
        &[Word::Guest, Word::Other],
        &[],
        "give a guest a further disk",
    )
    .more(
        "DISK is as in a configuration, for instance /guests/a.img,raw,xvdb,w\n\
         Several words are taken together with commas.",
    ),
    verb(
        Id::BlockDetach,
        "block-detach",
        "GUEST VDEV",
        (2, 2),
        &[Word::Guest, Word::Disk],
        &[flag('f', "force", "do not wait for the guest to let go")],
        "take a disk from a guest",
    )
    .more("VDEV is its name (xvda) or number (51712)."),
    verb(
        Id::NetworkList,
        "network-list",
        "GUEST...",
        (1, MANY),
        &[Word::Guest],
        &[],
        "list network interfaces",
    ),
    verb(
        Id::NetworkAttach,
        "network-attach",
        "GUEST [VIF...]",
        (1, MANY),
        &[Word::Guest, Word::Other],
        &[],
        "give a guest a further network interface",
    )
    .more(
        "VIF is as in a configuration, for instance mac=00:16:3e:12:34:56,bridge=xenbr0\n\
         Several words are taken together with commas.",
    ),
    verb(
        Id::NetworkDetach,
        "network-detach",
        "GUEST DEVID|MAC",
        (2, 2),
        &[Word::Guest, Word::Vif],
        &[flag('f', "force", "do not wait for the guest to let go")],
        "take a network interface from a guest",
    ),
    verb(
        Id::BridgeList,
        "bridge-list",
        "",
        (0, 0),
        &[],
        &[],
        "list bridges and what goes through their ports",
    ),
    verb(
        Id::XenstoreLs,
        "xenstore-ls",
        "[PATH]",
        (0, 1),
        &[Word::Node],
        &[
            flag('f', "full", "with full paths"),
            flag('p', "perms", "with permissions"),
        ],
        "show xenstore's tree",
    ),
    verb(
        Id::XenstoreRead,
        "xenstore-read",
        "PATH...",
        (1, MANY),
        &[Word::Node],
        &[flag('p', "prefix", "with the path before each value")],
        "read nodes of xenstore",
    ),
    verb(
        Id::XenstoreWrite,
        "xenstore-write",
        "PATH VALUE [PATH VALUE]...",
        (2, MANY),
        &[Word::Node],
        &[],
        "write nodes of xenstore",
    ),
    verb(
        Id::XenstoreRm,
        "xenstore-rm",
        "PATH...",
        (1, MANY),
        &[Word::Node],
        &[],
        "remove nodes of xenstore and all below",
    ),
    verb(
        Id::XenstoreList,
        "xenstore-list",
        "PATH...",
        (1, MANY),
        &[Word::Node],
        &[flag('p', "prefix", "with the path before each name")],
        "list the children of nodes of xenstore",
    ),
    verb(
        Id::XenstoreWatch,
        "xenstore-watch",
        "PATH",
        (1, 1),
        &[Word::Node],
        &[Opt {
            short: Some('n'),
            long: "number",
            value: Some("COUNT"),
            help: "end after so many changes",
        }],
        "show changes in xenstore until Ctrl-C",
    ),
    verb(Id::Clear, "clear", "", (0, 0), &[], &[], "clear the screen"),
    verb(
        Id::History,
        "history",
        "[COUNT]",
        (0, 1),
        &[Word::Other],
        &[],
        "show the lines that were entered, or the last of them",
    ),
    verb(
        Id::Help,
        "help",
        "[VERB]",
        (0, 1),
        &[Word::Verb],
        &[],
        "explain a verb, or list them all",
    ),
    verb(
        Id::Poweroff,
        "poweroff",
        "",
        (0, 0),
        &[],
        &[
            flag('f', "force", "do not ask guests to power off before"),
            flag('r', "reboot", "restart the machine"),
        ],
        "end all guests and power the machine off",
    ),
];

/// What people type who come from elsewhere, and what is to be said of it.
const ELSEWHERE: &[(&str, &str)] = &[
    ("exit", HERE),
    ("quit", HERE),
    ("logout", HERE),
    (
        "trigger",
        "Xen on Arm has no triggers; see: shutdown, reboot, sysrq",
    ),
    (
        "debug-keys",
        "the hypervisor has no debug keys; see: dmesg, doctor, list -l, vcpu-list",
    ),
    (
        "sched-credit",
        "the scheduler goes by its numbers as credit2; see: sched-credit2",
    ),
    (
        "dump-core",
        "memory cannot be dumped yet; see: console, dmesg, xenstore-ls",
    ),
    ("save", NO_SAVE),
    ("restore", NO_SAVE),
    ("migrate", NO_SAVE),
    ("suspend", NO_SAVE),
    ("ls", "see: list, and xenstore-ls"),
    (
        "reset",
        "see: poweroff -r for the machine, reboot for a guest",
    ),
    (
        "halt",
        "see: poweroff for the machine, shutdown for a guest",
    ),
];
/// Of words that leave a shell.
const HERE: &str =
    "this prompt is the machine's own: poweroff ends it; Ctrl-] leaves a guest's console";
const NO_SAVE: &str = "guests can be neither saved nor moved to another machine; see: pause";

/// What to say of a word that is no verb.
pub(super) fn unknown(name: &str) -> String {
    if let Some((_, advice)) = ELSEWHERE.iter().find(|(word, _)| *word == name) {
        return format!("there is no \"{name}\": {advice}");
    }
    match text::closest(name, VERBS.iter().map(|v| v.name)) {
        Some(meant) => format!("there is no \"{name}\"; did you mean \"{meant}\"?"),
        None => format!("there is no \"{name}\"; see: help"),
    }
}

/// Keys of the line editor, for the text of `help`.
const KEYS: &str = "\n\
    Tab completes. Up and Down recall, Ctrl-R searches what was entered before, also in\n\
    former runs. Ctrl-A, Ctrl-E: begin and end; Alt-B, Alt-F: by words; Ctrl-W, Ctrl-U,\n\
    Ctrl-K: cut a word, what is before, what is behind; Ctrl-Y: put it in; Ctrl-L: clear.\n\
    Ctrl-C ends a command that waits. Ctrl-] leaves a guest's console.\n";

/// A verb by its name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Verb> {
    VERBS.iter().find(|v| v.name == name)
}

/// The text of `help`.
#[must_use]
pub fn overview() -> String {
    let widest = VERBS.iter().map(|v| v.name.len()).max().unwrap_or(0);
    let mut out = "usage: VERB [OPTION]... [ARGUMENT]...\n\n".to_owned();
    for v in VERBS {
        out.push_str(&format!("  {:widest$}  {}\n", v.name, v.summary));
    }
    out.push_str("\nhelp VERB, or VERB -h, tells more. --json: as JSON, for programs.\n");
    out.push_str(KEYS);
    out
}

/// The options of a verb, with those that every verb takes.
pub(super) fn options(verb: &Verb) -> impl Iterator<Item = &Opt> {
    verb.options.iter().chain(core::iter::once(&JSON))
}

impl Verb {
    /// One line that shows how it is used.
    #[must_use]
    pub fn usage(&self) -> String {
        let mut out = format!("usage: {}", self.name);
        for o in options(self) {
            let value = o.value.map(|v| format!(" {v}")).unwrap_or_default();
            match o.short {
                Some(c) => out.push_str(&format!(" [-{c}{value}]")),
                None => out.push_str(&format!(" [--{}{value}]", o.long)),
            }
        }
        if !self.args.is_empty() {
            out.push(' ');
            out.push_str(self.args);
        }
        out
    }

    /// The text of `help VERB`.
    #[must_use]
    pub fn help(&self) -> String {
        let mut out = format!("{}\n\n{}: {}\n", self.usage(), self.name, self.summary);
        if !self.details.is_empty() {
            out.push_str(&format!("{}\n", self.details));
        }
        out.push('\n');
        let left = |o: &Opt| {
            let short = o.short.map_or("    ".to_owned(), |c| format!("-{c}, "));
            let value = o.value.map(|v| format!(" {v}")).unwrap_or_default();
            format!("  {short}--{}{value}", o.long)
        };
        let help = flag('h', "help", "show this");
        let all = || options(self).chain(core::iter::once(&help));
        let widest = all().map(|o| left(o).len()).max().unwrap_or(0);
        for o in all() {
            out.push_str(&format!("{:widest$}  {}\n", left(o), o.help));
        }
        out
    }
}

/// A command as it was given.
#[derive(Clone, Debug)]
pub struct Command {
    /// The verb.
    pub verb: &'static Verb,
    /// The long names of the options given, with their values.
    pub options: Vec<(&'static str, String)>,
    /// The words.
    pub words: Vec<String>,
    /// `-h` was given.
    pub help: bool,
}

impl Command {
    /// Whether an option was given.
    #[must_use]
    pub fn has(&self, long: &str) -> bool {
        self.value(long).is_some()
    }

    /// An option's value; of several the last.
    #[must_use]
    pub fn value(&self, long: &str) -> Option<&str> {
        self.options
            .iter()
            .rev()
            .find(|(name, _)| *name == long)
            .map(|(_, value)| value.as_str())
    }

    /// A word.
    #[must_use]
    pub fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", String::as_str)
    }
}

/// Splits a line into words: blanks separate, `'…'` is taken as it is, in `"…"` and outside a
/// backslash takes away the next character's meaning, `#` at the start of a word begins a comment.
///
/// # Errors
/// A quote is not closed.
pub fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '#' if word.is_none() => break,
            '\\' => {
                let Some(c) = chars.next() else {
                    return Err(
                        "a backslash at the end of the line; for a backslash write \\\\".to_owned(),
                    );
                };
                word.get_or_insert_default().push(c);
            }
            quote @ ('\'' | '"') => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => return Err(format!("a {quote} is not closed")),
                        Some(c) if c == quote => break,
                        Some('\\') if quote == '"' => match chars.next() {
                            Some(c @ ('"' | '\\')) => word.push(c),
                            Some(c) => word.extend(['\\', c]),
                            None => return Err(format!("a {quote} is not closed")),
                        },
                        Some(c) => word.push(c),
                    }
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Reads a command. `None` for an empty line.
///
/// # Errors
/// What is wrong, and how the verb is used.
pub fn parse(line: &str) -> Result<Option<Command>, String> {
    let words = split(line)?;
    let mut words = words.iter().map(String::as_str);
    // People and documents write the program's name before the verb.
    let name = match words.next() {
        Some("vane" | "xl") => words.next(),
        other => other,
    };
    let Some(name) = name else { return Ok(None) };
    let name = match name {
        "-h" | "--help" | "?" => "help",
        name => name,
    };
    let Some(verb) = find(name) else {
        return Err(unknown(name));
    };
    let usage = |what: String| format!("{}: {what}\n{}", verb.name, verb.usage());
    let mut command = Command {
        verb,
        options: Vec::new(),
        words: Vec::new(),
        help: false,
    };
    let mut args = getargs::Options::new(words);
    loop {
        let arg = match args.next_arg() {
            Ok(None) => break,
            Ok(Some(arg)) => arg,
            Err(e) => return Err(usage(e.to_string())),
        };
        let (shown, known) = match arg {
            getargs::Arg::Positional(word) => {
                command.words.push(word.to_owned());
                continue;
            }
            getargs::Arg::Short('h') | getargs::Arg::Long("help") => {
                command.help = true;
                continue;
            }
            getargs::Arg::Short(c) => (
                format!("-{c}"),
                verb.options.iter().find(|o| o.short == Some(c)),
            ),
            getargs::Arg::Long(long) => {
                (format!("--{long}"), options(verb).find(|o| o.long == long))
            }
        };
        let Some(known) = known else {
            return Err(usage(format!("there is no option {shown}")));
        };
        let value = match known.value {
            None => String::new(),
            Some(what) => match args.value() {
                Ok(value) => value.to_owned(),
                Err(_) => return Err(usage(format!("{shown} needs its {what}"))),
            },
        };
        command.options.push((known.long, value));
    }
    let (few, many) = verb.count;
    if !command.help && command.words.len() < few {
        return Err(usage("too few words".to_owned()));
    }
    if let (false, Some(extra)) = (command.help, command.words.get(many)) {
        return Err(usage(format!("\"{extra}\" is one word too many")));
    }
    Ok(Some(command))
}
