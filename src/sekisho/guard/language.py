"""Which language a text is in, by scripts and function words: cheap, deterministic, and sure only of what it knows.

`other` means a language that rules and classifier were not made for, and is said only on evidence. A text without
evidence (a name, code, a number, one word) is `en` when it has Latin letters and `unknown` when it has no letters."""

import re
from typing import Literal

from sekisho.guard.beyond_ascii import beyond_ascii

Language = Literal["ja", "en", "mixed", "other", "unknown"]

_HEAD_CHARS, _TAIL_CHARS = 6_000, 2_000  # of a long text
_FOREIGN_SHARE, _FOREIGN_LETTERS = 0.3, 4

_MARKS = re.compile("[\u0300-\u036f]+")
_NO_KANA = "\u3000、。「」『』【】〜・々〇〈〉《》"  # in the block U+30xx
_NO_LETTERS = bytes(c for c in range(256) if not (65 <= (c & 0xDF) <= 90 or c >= 0xC0))  # in Latin-1


def _blocks(*ranges: tuple[int, int]) -> bytes:
    """High bytes of UTF-16 code units."""
    return bytes(block for first, last in ranges for block in range(first, last + 1))


_KANA_BLOCK = _blocks((0x30, 0x30))
_HAN_BLOCKS = _blocks((0x34, 0x4D), (0x4E, 0x9F), (0xF9, 0xFA))
_LATIN_BLOCKS = _blocks((0x01, 0x02), (0x1E, 0x1E))
_FOREIGN_BLOCKS = _blocks((0x03, 0x1D), (0x1F, 0x1F), (0x2C, 0x2D), (0x31, 0x31), (0xA0, 0xD7), (0xFB, 0xFD))
_ACCENTED = re.compile("[\u00df-\u00f6\u00f8-\u024f\u1e00-\u1eff]")
_ACCENTED_WORD = re.compile("[a-z']*[\u00df-\u00f6\u00f8-\u024f\u1e00-\u1eff][a-z\u00df-\u024f\u1e00-\u1eff]*")
_WORD = re.compile("[a-z\u00df-\u00f6\u00f8-\u024f\u1e00-\u1eff]+")
_NO_SMALL_LETTERS = bytes(c if 97 <= c <= 122 else 32 for c in range(256))
_WHOLE_CHINESE = re.compile("[你弹炸们這这吗嗎么麼怎请呢您們沒给她它哪啥咋吧啊谁谢妈爸还让对说为从没谁]")
_SIMPLIFIED = re.compile(
    "[东个丰严丧丽举义乌乐习书买乱亏产亲亿仅价众优传伤伪侧侦债儿兰关兴养军农冲决况净准减几凤击划则刚创别办务动劳势劝华协卖卢卫厂厅历压厌县双发变叶听启员响单卖团园围图圆场坏块坚坛处备复够头夹夺奋妇妈娱孙宁实宠审宽宾寻导尔尘尝层岁岛币师帐带帮广庄庆库应废开异弃张强归录彻忆忧怀态总恋惊惯愿懒戏战执扩扫扬抢护报拟拥择挂挡换据损摆摇撑敌数断无旧显晓术机杀权条杨极构枪标栋树样档桥梦检楼欢残毁毕汇汉汤沟泪泽洁浅测济浓涂润涨渐湾湿满滚灭灵灾炼点热爱爷牵犹独狮猎环现玛电画畅疗监盖盘着矿码砖础确离种积称穷窃竞笔类粮紧纠红约级纪纯纲纳纸纹线练组细织终绍经结给络绝统继绩续绿缓编缘缩网罗罚罢职联聪肃肠胁脑脚脱脸艺节苏荣药莱获营虑虽补装观规视览觉触计订认讨让训议讯记讲许论设访证评识诈诉诊词译试诗话该详语误诱请诸读课调谅谈谋谓谢谷贝财责贤败货质贩贪购贯贴贵贷贸费资赏赖赛赞赢赵赶趋跃践踪车轨轮软轰轻载较辅辆辈辉输边达过运进远违连迟适选递逻遗邮邻郑释针钟钢钱铁铜银销锁错键镇长门闭问闲间闹闻阅队阳阴阵阶际陆陈险随隐难雾静韩页顶项顺须顾顿预领频题颜额风飞饭饮饰饱馆驱验骂骗鱼鲁鸟鸡麦龙]"
)
_CHINESE_HABITS = frozenset("的了是我不在有和要就都也到去会可能什么人他做想用把被让很")

_ENGLISH_LIST = (
    "the a an and or but of to in on at for from with by is are was were be been being am it its this that these "
    "those i you he she we they me my your his her our their him them us who what when where why how which whose "
    "do does did can could will would should shall may might must not no yes if then than so as about into over "
    "under after before have has had having there here please tell explain write give make help show want need "
    "know get let find use"
)
_ENGLISH = frozenset(_ENGLISH_LIST.split())
_ROMAJI_LIST = (
    "wo wa ga ni desu masu kudasai oshiete shite suru tsukurikata houhou nani doko dare itsu watashi boku kara "
    "made arigatou konnichiwa sumimasen shimasu shitai tai ka yo ne dou hoshii nihongo kore sore demo mo he tte"
)
_ROMAJI = frozenset(_ROMAJI_LIST.split())
_FOREIGN_WORDS: tuple[frozenset[str], ...] = tuple(
    frozenset(words.split())
    for words in (
        # fr, de, es, pt, it, nl, id, tr, vi, pl, sv: words that English text and names do not hold
        "une est pour dans avec je vous nous qui pas sur que les des faire mon mes cette ces sont être elle sans peut "
        "puis quel quelle où mais votre moi suis avez fabriquer pourquoi quoi ou ce ne expliquez aux au",
        "und ist nicht ich wie eine einen einem ein für mit auf dem das zu wir sie er es wird kann sind auch oder aber "
        "warum mein meine bitte mir wenn machen können zum zur über nach bei haben habe baue man sich ohne",
        "que para por una uno como cómo qué está es con los las mi hacer puedo puede pero más sin sobre cuando cuál "
        "quiero necesito yo tu su fue ser hay donde dónde dime explica hago se lo fabricar un",
        "que para por uma um como não está com os meu minha fazer posso pode mas mais sem sobre quando qual quero você "
        "eu seu foi ser onde isso são do da na no em ao me diga explique",
        "che per una un come non è con gli mio mia fare posso può ma più senza sono quando quale voglio questo della "
        "delle nella il lo dove perché si costruire spiegami",
        "een het van niet ik hoe met voor op aan is zijn wij kan maar ook waarom mijn je wat maken naar ben heb dit "
        "dat en te bij uit",
        "yang dan di untuk dengan saya bagaimana cara ini itu tidak ada apa bisa dari ke membuat anda kami akan pada "
        "tolong adalah",
        "bir ve bu için nasıl ile ne ben sen değil var yok mı mi mu olarak yapılır bana lütfen çok daha kadar",
        "là và của tôi không có một cách làm cho được người này với bạn như thế nào để trong các những",
        "nie jest się na jak co do to w z że czy mam może dla są ale jestem zrobić proszę od po",
        "och är inte jag hur en ett att det som för på med av till kan jag du vi göra varför vad den",
    )
)

_ONLY_FOREIGN: frozenset[str] = frozenset().union(*_FOREIGN_WORDS) - _ENGLISH


def language(text: str) -> Language:
    """The language of raw or normalised `text`. Linear; looks at the head and the tail of a long text."""
    if len(text) > _HEAD_CHARS + _TAIL_CHARS:
        text = f"{text[:_HEAD_CHARS]} {text[-_TAIL_CHARS:]}"
    if text.isascii():
        return _latin(text) if text.encode().translate(None, _NO_LETTERS) else "unknown"
    kana, han, latin, foreign = _letters(text)
    letters = kana + han + latin + foreign
    if not letters:
        return "unknown"
    if foreign >= _FOREIGN_LETTERS and foreign >= _FOREIGN_SHARE * letters:
        return "other"
    if han and _chinese(text, kana, han) and han >= _FOREIGN_SHARE * (han + latin):
        return "other"
    if kana or han:
        return _japanese(text, kana + han, latin)
    return _latin(text) if latin else "unknown" if foreign < _FOREIGN_LETTERS else "other"


def _letters(text: str) -> tuple[int, int, int, int]:
    """How many letters are kana, Han, Latin, and of other scripts."""
    beyond = beyond_ascii(text)
    high = _MARKS.sub("", beyond).encode("utf-16-be", "replace")[::2]

    def count(blocks: bytes) -> int:
        return len(high) - len(high.translate(None, blocks))

    kana = count(_KANA_BLOCK)
    if kana:
        kana -= sum(map(beyond.count, _NO_KANA))
    latin = len(text.encode("latin-1", "ignore").translate(None, _NO_LETTERS)) + count(_LATIN_BLOCKS)
    half_and_full = [c for c in beyond if "\uff21" <= c <= "\uff9f"] if 0xFF in high else []
    wide = sum(c <= "\uff5a" for c in half_and_full)
    return kana + len(half_and_full) - wide, count(_HAN_BLOCKS), latin + wide, count(_FOREIGN_BLOCKS)


def _chinese(text: str, kana: int, han: int) -> bool:
    """Whether Han characters speak for Chinese: whole-word characters, simplified forms, or several habits."""
    if kana * 20 > han:
        return False
    if _WHOLE_CHINESE.search(text) or len(set(_SIMPLIFIED.findall(text))) >= (2 if han < 20 else 3):
        return True
    habits = len(_CHINESE_HABITS.intersection(text))
    return kana == 0 and (habits >= 3 or (habits >= 2 and han >= 16))


def _japanese(text: str, japanese: int, latin: int) -> Language:
    """`ja`, or `mixed` or `en` where English sentences stand beside few Japanese characters."""
    if latin <= japanese:
        return "ja"
    words = _words(text.lower())
    english = sum(word in _ENGLISH for word in words)
    if japanese < 6 and english >= 2:
        return "en"
    if japanese >= 6 and _latin(text) == "other":
        return "mixed"
    return "mixed" if english >= 4 else "ja"


def _latin(text: str) -> Language:
    """`other` on two or more function words of one foreign language that outnumber the English ones, else `en`."""
    if text.isascii() and len(_ONLY_FOREIGN.intersection(text.lower().split())) < 2:
        return "en"
    text = text.lower()
    words = _words(text)
    known = set(words)
    accented = 0 if text.isascii() else _accented(text)
    if len(words) < 3 or (not accented and len(_ONLY_FOREIGN & known) < 2):
        return "en"
    foreign = max(_FOREIGN_WORDS, key=lambda vocabulary: len(known & vocabulary))
    hits = foreign & known
    if not hits and accented < 3:
        return "en"
    english = len(known & (_ENGLISH - foreign))
    if len(known & _ROMAJI) >= 2 and accented == 0 and english <= 2 and len(known & _ROMAJI) >= len(hits):
        return "en"
    if len(hits) >= 2 and len(hits) > english and len(hits - _ENGLISH) >= 2:
        return "other"
    if hits - _ENGLISH and accented and len(hits) + accented > english + 1 and english <= 1:
        return "other"
    return "other" if accented >= 3 and english == 0 and 3 * accented >= len(words) and len(words) >= 6 else "en"


def _words(text: str) -> list[str]:
    """The Latin words of a lower-case text."""
    if _ACCENTED.search(beyond_ascii(text)):
        return _WORD.findall(text)
    return text.encode("ascii", "replace").translate(_NO_SMALL_LETTERS).decode("ascii").split()


def _accented(text: str) -> int:
    """How many different words of a lower-case text have accents."""
    if not _ACCENTED.search(beyond_ascii(text)):
        return 0
    return len(set(_ACCENTED_WORD.findall(" ".join(word for word in text.split() if not word.isascii()))))
