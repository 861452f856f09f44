"""Help texts, made from the table of verbs; loaded only when somebody asks."""

from __future__ import annotations

from mhctl.commandline import ALIASES, NOUNS, Verb

EXIT_CODES = (
    "exit codes: 0 done, 1 the job failed, 2 usage, 3 the daemon is not reached, 4 not found, 5 not allowed\n"
)


def usage(noun: str, verb: Verb) -> str:
    """One line: how a verb is called."""
    words = ["mhctl", noun, verb.name] if verb.name else ["mhctl", noun]
    for option in verb.options:
        if option.names[0] in ("--json", "--url", "-h"):
            continue
        text = f"{option.names[0]} {option.metavar}".rstrip()
        words.append(text if option.required else f"[{text}]{'…' * option.many}")
    words += ["[--]", "CMD", "ARG…"] if verb.operands == ["COMMAND"] else verb.operands
    return " ".join(words)


def help_for(noun: str, verb: Verb | None) -> str:
    """The help text of everything, of a noun, or of one verb."""
    if verb is not None:
        return _verb_help(noun, verb)
    lines = ["usage: mhctl " + (f"{noun} VERB …" if noun else "NOUN VERB …"), ""]
    for name, verbs in NOUNS.items():
        if noun and name != noun:
            continue
        lines += [f"  {usage(name, each)}\n      {_first_upper(each)}" for each in verbs]
    lines += ["", "VERB --help tells more. An id's unique beginning or a name serves wherever an id does."]
    short = ", ".join(f"{alias} ({name})" for alias, name in ALIASES.items())
    lines.append(f"short forms: {short}, add (create), ls (list), rm (delete)")
    return "\n".join(lines) + "\n" + EXIT_CODES


def _first_upper(verb: Verb) -> str:
    return verb.help_text[:1].upper() + verb.help_text[1:]


def _verb_help(noun: str, verb: Verb) -> str:
    lines = [f"usage: {usage(noun, verb)}", "", _first_upper(verb) + ".", ""]
    for option in verb.options:
        spelling = ", ".join(option.names) + (f" {option.metavar}" if option.metavar else "")
        lines.append(f"  {spelling:<28} {option.help_text}")
    return "\n".join(lines) + "\n" + EXIT_CODES
