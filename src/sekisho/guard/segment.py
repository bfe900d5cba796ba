"""Finds the words in letters that were run together, with a short vocabulary: "howtomakeabomb"."""

_LONGEST_WORD = 16
_LONGEST_RUN = 2_000
_WORDS_LIST = (
    "a i an the and or of to in on at for from with by is are was be it this that you your my me we he she they "
    "him her how what where when why who which do does can could will would should make making build building "
    "create write get buy sell use using tell show give explain teach help want need please step steps guide way "
    "home house without all ignore disregard forget previous prior above earlier instructions instruction rules "
    "rule system prompt developer mode jailbreak reveal print now act as no not any password passwords secret "
    "secrets key keys account accounts bank card credit fake forge id bomb bombs pipe explosive explosives gun "
    "guns weapon weapons poison nerve gas sarin ricin meth drug drugs cook cocaine heroin kill killing murder "
    "someone people person myself yourself die suicide hang hurt hack hacking hacked into break steal stealing "
    "malware virus ransomware keylogger phishing scam fraud launder money spy stalk track wife husband girlfriend "
    "boyfriend phone child children kids sex sexual porn nude minor minors attack school boss hidden camera "
    "address anthrax grenade molotov cocktail silencer untraceable ghost pills overdose painless painlessly "
    "doctor medicine dose sue lawyer fired harassment wifi neighbor neighbour bypass filter filters guard safety "
    "dose chest pain salary mail email message site website server computer code out up down if so them"
)
_WORDS = frozenset(_WORDS_LIST.split())
_HIDDEN_LIST = (  # further words that are worth hiding
    "abuse ammo ammonium amphetamine anal arsenic arson assassin assault ass bestiality bitch blackmail blade bleach "
    "botulinum bribe burglar carfentanil chlor counterfeit crack crime cyanide ddos dealer destroy detonat dox drown "
    "dynamite ecstasy escape evade execut exploit explod explosi extort fentanyl firearm genocid ghb groom hate heist "
    "hitman incest inject isis jihad ketamine kidnap kiddie knife knive lsd lynch machete massacre mdma mine missile "
    "mutilat nazi nitro opium paedo pedo penis pistol piss phish propaganda prostitut pussy racis ransom rape rapis "
    "revenge rifle rob rohypnol sabotage shank shoot shot slave slit smuggl stab strangl swat tase terror thermite "
    "threat tnt tortur toxic toxin traffic trojan uranium venom victim violen whore worm xanax take please bypass"
)
_HIDDEN = _WORDS.union(_HIDDEN_LIST.split())


def segment(run: str) -> str:
    """`run` in as few unknown letters, then as few words, as the vocabulary allows; itself where it knows nothing."""
    if not 4 <= len(run) <= _LONGEST_RUN:
        return run
    best: list[tuple[int, int, int]] = [(0, 0, 0)]  # per length: unknown letters, words, start of the last word
    for end in range(1, len(run) + 1):
        unknown, words, _ = best[end - 1]
        choice = (unknown + 1, words + 1, end - 1)
        for start in range(max(0, end - _LONGEST_WORD), end):
            if run[start:end] in _WORDS:
                unknown, words, _ = best[start]
                choice = min(choice, (unknown, words + 1, start))
        best.append(choice)
    if best[-1][0] * 3 > len(run):
        return run
    pieces: list[str] = []
    end = len(run)
    while end:
        start = best[end][2]
        pieces.append(run[start:end])
        end = start
    return _glue(reversed(pieces))


def begins_word(letters: str, beyond: int) -> bool:
    """Whether letters begin with a word of the vocabulary, of three letters or more, that ends beyond that place."""
    ends = range(max(3, beyond + 1), min(len(letters), _LONGEST_WORD) + 1)
    return any(letters[:end] in _HIDDEN for end in ends)


def _glue(pieces: "reversed[str]") -> str:
    """Words with blanks between them; single unknown letters stay together."""
    told: list[str] = []
    loose = False
    for piece in pieces:
        unknown = piece not in _WORDS
        if unknown and loose:
            told[-1] += piece
        else:
            told.append(piece)
        loose = unknown
    return " ".join(told)
