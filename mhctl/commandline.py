"""Reading a command line by one table of verbs; knows nothing of what the verbs do.

argparse would cost 10 ms and cannot say "the first word that is no option starts the command".
"""

from __future__ import annotations

from mhctl.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Option:
    """An option of a verb.

    Args:
        spelling: its names, "-e --env".
        metavar: what its value is called; "" makes it a flag.
        many: it may be given several times and its values form a list.
        number: its value is a number of at least zero (of seconds, of lines).
        required: the verb makes no sense without it.
    """

    def __init__(
        self,
        spelling: str,
        metavar: str,
        help_text: str,
        *,
        many: bool = False,
        number: bool = False,
        required: bool = False,
    ) -> None:
        self.names = spelling.split()
        self.key = self.names[-1].lstrip("-").replace("-", "_")
        self.metavar = metavar
        self.help_text = help_text
        self.many = many
        self.number = number
        self.required = required


class Verb:
    """A verb of a noun.

    Args:
        operands: the words that must follow, "SERVICE NEW_NAME"; "COMMAND" takes all the rest as it stands.
    """

    def __init__(self, name: str, operands: str, help_text: str, *options: Option, aliases: str = "") -> None:
        self.name = name
        self.operands = operands.split()
        self.help_text = help_text
        self.options = (*options, *COMMON)
        self.aliases = aliases.split()


class Parsed:
    """What a command line asks for.

    Attributes:
        verb: None when only help or the version is wanted.
        options: by Option.key; flags that were not given are False, values None, lists [].
    """

    def __init__(self, noun: str, verb: Verb | None, options: dict[str, Any], operands: list[str]) -> None:
        self.noun = noun
        self.verb = verb
        self.options = options
        self.operands = operands


COMMON = (
    Option("--json", "", "print the API's objects as JSON"),
    Option("--url", "URL", "where the daemon listens (default: MIEHISTO_URL, else its unix socket)"),
    Option("-h --help", "", "print this help"),
)
VERSION = Option("-V --version", "", "print the version")
NO_WAIT = Option("--no-wait", "", "do not wait: print the job's id")
TIMEOUT = Option("--timeout", "SECONDS", "give up waiting after so long; the job goes on", number=True)
WAITING = (NO_WAIT, TIMEOUT)
GRACE = Option("--grace", "SECONDS", "time between SIGTERM and SIGKILL", number=True)

PID = Option("-t --pid", "PID", "the service with this process")
RESTORE_ON_BOOT = Option(
    "--restore-on-boot",
    "",
    "bring it back from its newest sound image after a boot, or from a new one if its supervisor is lost",
)
TCP_CLOSE = Option("--tcp-close", "", "drop open TCP connections instead of keeping them")
DUMPING = (
    TCP_CLOSE,
    Option("--tcp-skip-in-flight", "", "leave out connections that were not accepted yet"),
    Option(
        "--ghost-limit", "BYTES", "take deleted open files up to this size (default: 256 MiB)", number=True
    ),
    Option("--force-irmap", "DIR", "search this folder for files that are watched", many=True),
    Option(
        "--freeze-timeout",
        "SECONDS",
        "give up if the processes do not freeze in time (default: 10)",
        number=True,
    ),
    Option("--carry", "PATH", "hold this file or folder of its data in the image, too", many=True),
)

CREATE = Verb(
    "create",
    "COMMAND",
    "start a command as a new service; prints the service's id",
    Option("-u --user", "USER[:GROUP]", "run it as this user"),
    Option("-C --cwd", "DIR", "run it in this folder"),
    Option("-e --env", "K=V", "set an environment variable", many=True),
    Option("-b --bind", "SRC:DST[:ro]", "show SRC to the service at DST", many=True),
    Option("--data", "PATH", "a restore compares this file or folder of its data, too", many=True),
    Option("--carry", "PATH", "its images hold this file or folder of its data", many=True),
    Option("--memory", "SIZE", "let it have so much memory (512M)"),
    Option("--tasks", "N", "let it have so many processes and threads", number=True),
    Option("--open-files", "N", "let each of its processes open so many files", number=True),
    Option("--private-tmp", "SIZE", "give it a /tmp of its own, in memory, dumped with it"),
    Option("--cap-add", "NAME", "let it keep a capability (capabilities(7), or ALL)", many=True),
    Option("--cap-drop", "NAME", "take a capability that root's services have", many=True),
    Option("--new-privileges", "", "let setuid programs give it their rights"),
    RESTORE_ON_BOOT,
    Option("--name", "NAME", "a name for the service"),
    *WAITING,
    aliases="add",
)
NOUNS: dict[str, list[Verb]] = {
    "service": [
        CREATE,
        Verb(
            "list",
            "",
            "the services that have a process",
            Option("-a --all", "", "also those that have none"),
            aliases="ls",
        ),
        Verb(
            "show",
            "SERVICE",
            "everything about a service",
            Option("--env", "", "also the values of its environment; that you looked is written down"),
        ),
        Verb(
            "dump",
            "[SERVICE]",
            "dump a running service into an image; prints the image's folder",
            PID,
            Option("--leave-running", "", "let the service run on"),
            *DUMPING,
            *WAITING,
        ),
        Verb(
            "drain",
            "",
            "dump all that run and shall come back after a boot; prints the images' folders",
            Option("-a --all", "", "all that run, whether they shall come back or not"),
            *DUMPING,
            Option("--timeout", "SECONDS", "time for all of them together (default: 300)", number=True),
        ),
        Verb(
            "check",
            "[SERVICE]",
            "could this be dumped now, and how; freezes nothing",
            PID,
            *DUMPING,
            *WAITING,
        ),
        Verb(
            "restore",
            "[SERVICE]",
            "restore a dumped service, or any from one of its images; prints the image's id",
            Option("--from", "IMAGE", "the image, instead of SERVICE"),
            Option("--accept-changed-files", "", "even if files on the disk have moved on since the dump"),
            TCP_CLOSE,
            *WAITING,
        ),
        Verb("stop", "SERVICE", "stop a service", GRACE, *WAITING),
        Verb("start", "SERVICE", "start a service that has no process, from its command", *WAITING),
        Verb("restart", "SERVICE", "stop and start a service", GRACE, *WAITING),
        Verb(
            "logs",
            "SERVICE",
            "what a service wrote",
            Option("-f --follow", "", "go on as it writes"),
            Option("-n --lines", "N", "only the last N lines", number=True),
        ),
        Verb("top", "[SERVICE]", "what a service uses and does now; without SERVICE, what each uses"),
        Verb(
            "set",
            "SERVICE",
            "change what a service is",
            RESTORE_ON_BOOT,
            Option("--no-restore-on-boot", "", "leave it where it is after a boot"),
        ),
        Verb(
            "schedule",
            "SERVICE",
            "dump a service at set times without ending it; without options, show its schedule",
            Option("--every", "TIME", "the time between two dumps (90s, 30m, 1h, 2d)"),
            Option("--cron", "EXPRESSION", 'when to dump, such as "0 3 * * *", in UTC'),
            Option("--keep", "N", "keep so many of the images that it makes (3 at first)", number=True),
            Option("--off", "", "take the schedule away; its images stay"),
        ),
        Verb("rename", "SERVICE NEW_NAME", 'give a service another name ("" for none)'),
        Verb(
            "delete",
            "SERVICE",
            "forget a service; its images stay",
            Option("--stop", "", "stop it first if it runs"),
            *WAITING,
            aliases="rm",
        ),
    ],
    "image": [
        Verb("list", "", "the images", aliases="ls"),
        Verb("show", "IMAGE", "everything about an image, and what is in it"),
        Verb("compare", "BEFORE AFTER", "what changed from one image of a service to another"),
        Verb("environment", "IMAGE", "the values of the environment in an image; asking is recorded"),
        Verb("verify", "IMAGE", "compare an image's files with its manifest", *WAITING),
        Verb(
            "delete",
            "IMAGE",
            "delete an image from the disk",
            Option("--force", "", "even if it is all there is of a dumped service"),
            *WAITING,
            aliases="rm",
        ),
        Verb(
            "export",
            "IMAGE [FILE]",
            "write an image into one file (.tar.zst), - for the standard output; prints its path",
            Option("-r --recipient", "KEY", "encrypt it with age for this key", many=True),
            Option("--gpg-recipient", "KEY", "encrypt it with GnuPG for this key", many=True),
            *WAITING,
        ),
        Verb(
            "import",
            "FILE",
            "take an image from such a file, - for the standard input; prints the image's id",
            Option("-i --identity", "FILE", "the secret key of age that opens it"),
            *WAITING,
        ),
        Verb("rename", "IMAGE NEW_NAME", 'give an image another name ("" for none)'),
    ],
    "job": [
        Verb(
            "list",
            "",
            "the newest jobs",
            Option("--limit", "N", "how many", number=True),
            Option("--status", "STATUS", "only those in this state"),
            Option("--kind", "KIND", "only those of this kind: start, dump, restore, verify_image, …"),
            Option("--service", "SERVICE", "only those of this service"),
            Option("--source", "SOURCE", "only those asked for from there: web, api, mhctl, schedule, …"),
            aliases="ls",
        ),
        Verb("show", "JOB", "everything about a job"),
        Verb("wait", "JOB", "wait until a job has ended", TIMEOUT),
        Verb("cancel", "JOB", "cancel a job that has not begun"),
        Verb(
            "retry",
            "JOB",
            "ask again for what a job failed to do; prints the new job's id",
            Option("-o --option", "NAME=VALUE", "an option of the new job, tcp_close=true", many=True),
            *WAITING,
        ),
        Verb("log", "JOB", "the end of CRIU's log of a job that failed"),
    ],
    "check": [Verb("", "", "is this host able, and what is missing", *WAITING)],
}
ALIASES = {"s": "service", "services": "service", "i": "image", "images": "image", "j": "job", "jobs": "job"}


def parse(words: list[str]) -> Parsed:
    """Reads a command line.

    Args:
        words: sys.argv without the program's name.

    Raises:
        UsageError: a word that does not belong, a missing one, a bad number.
    """
    options: dict[str, Any] = {}
    words = list(words)
    noun = _next_word(words, (*COMMON, VERSION), options)
    noun = ALIASES.get(noun, noun)
    if not noun:
        return _without_verb("", options)
    if noun not in NOUNS:
        raise UsageError(f"There is no command {noun!r}.")
    verbs = NOUNS[noun]
    if verbs[0].name:
        name = _next_word(words, COMMON, options)
        if not name:
            return _without_verb(noun, options)
        verb = next((verb for verb in verbs if name == verb.name or name in verb.aliases), None)
        if verb is None:
            raise UsageError(f"There is no command {noun} {name!r}.", remedy=f"See `mhctl {noun} --help`.")
    else:
        verb = verbs[0]
    operands = _operands(verb, words, options)
    if not options.get("help"):
        _check_presence(noun, verb, operands, options)
    for option in verb.options:
        options.setdefault(option.key, [] if option.many else (None if option.metavar else False))
    return Parsed(noun, verb, options, operands)


def _without_verb(noun: str, options: dict[str, Any]) -> Parsed:
    if options.get("help") or options.get("version"):
        return Parsed(noun, None, options, [])
    raise UsageError(
        "The command does not say what to do.", remedy=f"See `mhctl {noun} --help`.".replace("  ", " ")
    )


def _next_word(words: list[str], known: tuple[Option, ...], options: dict[str, Any]) -> str:
    """Takes options off until a word that is none; "" when there is no such word."""
    while words:
        if not words[0].startswith("-") or words[0] in ("-", "--"):
            return words.pop(0)
        _take_option(words, known, options)
    return ""


def _operands(verb: Verb, words: list[str], options: dict[str, Any]) -> list[str]:
    operands: list[str] = []
    while words:
        if words[0] == "--":
            return operands + words[1:]
        if words[0].startswith("-") and words[0] != "-":
            _take_option(words, verb.options, options)
        elif verb.operands == ["COMMAND"]:
            return words  # the command begins: from here on nothing is ours, a later "--" neither
        else:
            operands.append(words.pop(0))
    return operands


def _take_option(words: list[str], known: tuple[Option, ...], options: dict[str, Any]) -> None:
    word = words.pop(0)
    if word.startswith("--"):
        name, equals, attached = word.partition("=")
        given = attached if equals else None
    else:
        name, given = word[:2], word[2:] or None
    option = next((option for option in known if name in option.names), None)
    if option is None:
        raise UsageError(f"There is no option {name} here.", remedy="See --help of the command.")
    if not option.metavar:
        if given is not None and word.startswith("--"):
            raise UsageError(f"The option {name} takes no value.")
        if given is not None:
            words.insert(0, f"-{given}")  # -af is -a -f
        options[option.key] = True
        return
    if given is None:
        if not words:
            raise UsageError(f"The option {name} needs a value.", remedy=f"Write {name} {option.metavar}.")
        given = words.pop(0)
    if option.number and not (given.isascii() and given.isdecimal()):
        raise UsageError(
            f"The option {name} needs a whole number, not {given!r}.", remedy=f"Write for example {name} 10."
        )
    if option.many:
        options.setdefault(option.key, []).append(given)
    else:
        options[option.key] = int(given) if option.number else given


def _check_presence(noun: str, verb: Verb, operands: list[str], options: dict[str, Any]) -> None:
    remedy = f"See `mhctl {noun} {verb.name} --help`.".replace("  ", " ")
    for option in verb.options:
        if option.required and not options.get(option.key):
            raise UsageError(f"The option {option.names[-1]} {option.metavar} is missing.", remedy=remedy)
    if verb.operands == ["COMMAND"]:
        if not operands:
            raise UsageError("The command to start is missing.", remedy=remedy)
        return
    least = [name for name in verb.operands if not name.startswith("[")]
    if len(operands) < len(least):
        raise UsageError(f"The word {least[len(operands)]} is missing.", remedy=remedy)
    if len(operands) > len(verb.operands):
        raise UsageError(f"The word {operands[len(verb.operands)]!r} is one too many.", remedy=remedy)
    for name, operand in zip(verb.operands, operands, strict=False):
        if not operand and name != "NEW_NAME":
            raise UsageError(f"The word {name.strip('[]')} is empty.", remedy=remedy)
