"""Common surnames and given names, and words that only look like names before an honorific."""

_JAPANESE_SURNAMES = """
佐藤 鈴木 高橋 田中 伊藤 渡辺 渡邊 渡邉 山本 中村 小林 加藤 吉田 山田 佐々木 山口 松本 井上 木村 林 斎藤 斉藤 齋藤
齊藤 清水 山崎 森 池田 橋本 阿部 石川 山下 中島 中嶋 石井 小川 前田 岡田 長谷川 藤田 後藤 近藤 村上 遠藤 青木 坂本
福田 太田 西村 藤井 金子 岡本 藤原 中野 三浦 原田 中川 松田 竹内 小野 田村 中山 和田 石田 森田 上田 原 内田 柴田
酒井 宮崎 横山 高木 安藤 宮本 大野 小島 谷口 工藤 今井 高田 増田 丸山 杉山 村田 大塚 新井 小山 平野 藤本 河野 上野
野口 武田 松井 千葉 菅原 岩崎 木下 久保 佐野 野村 松尾 菊地 市川 杉本 古川 大西 島田 水野 桜井 高野 渡部 吉川 山内
西田 飯田 菊池 西川 小松 北村 安田 五十嵐 川口 平田 関 中田 久保田 服部 東 岩田 土屋 川崎 福島 本田 辻 樋口 秋山
田口 永井 山中 中西 吉村 川上 石原 大橋 松岡 馬場 浜田 濱田 森本 星野 矢野 浅野 大島 松下 大久保 吉岡 小池 野田 荒木
松浦 熊谷 黒田 尾崎 永田 川村 望月 田辺 内藤 荒井 堀 大谷 平井 早川 横田 西山 栗原 菅野 西岡 片山 片岡 富田 岡崎
本間 東山 成田 須藤 川田 宮田 北川 岩本 上原 小西 大石 松村 篠原 奥村 関口 飯塚 今村 広瀬 廣瀬 甲斐 佐久間 田島 植田
石橋 児玉 西尾 大川 三宅 秋元 大森 榎本 村井 高山 川端 福井 桑原 萩原 根本 青山 神田 小田 岡 南 谷 坂井 白石 松永
三上 土井 永野 笠原 柳田 長田 堀内 金田 小泉 大竹 中原 河合 堤 吉野 安部 阪本 塚本 稲垣 長尾 浜口 杉浦 八木 村山
武藤 戸田 津田 浅井 平山 小沢 小澤 黒木 白井 榊原 竹田 荻野 細川 今野 及川 日高 川島 松原 大沢 大澤 滝沢 滝澤 古賀
宮川 矢島 小倉 寺田 稲葉 中尾 金沢 梅田 瀬戸 石塚 長島 真鍋 三好 向井 相馬 木田 牧野 江口 落合 小笠原 野崎 堀江 芦田
天野 飯島 市原 岩井 植木 大山 奥田 加納 川野 北野 黒川 坂田 沢田 澤田 重松 島崎 菅 田代 千田 徳永 仲村 新垣 比嘉
金城 宮城 大城 知念 玉城 島袋 羽生 柳 二宮 三木 四宮 六車 九条 一色
"""
JAPANESE_SURNAMES = frozenset(_JAPANESE_SURNAMES.split())

_JAPANESE_READINGS = """
さとう すずき たかはし たなか いとう わたなべ やまもと なかむら こばやし かとう よしだ やまだ ささき やまぐち
まつもと いのうえ きむら はやし さいとう しみず やまざき やまさき もり いけだ はしもと あべ いしかわ やました
なかじま いしい おがわ まえだ おかだ はせがわ ふじた ごとう こんどう むらかみ えんどう あおき さかもと ふくだ おおた
にしむら ふじい かねこ おかもと ふじわら なかの みうら たけうち おの
"""
JAPANESE_READINGS = frozenset(_JAPANESE_READINGS.split())

_JAPANESE_GIVEN_NAMES = """
太郎 次郎 三郎 一郎 二郎 健太郎 健太 健一 健二 健 翔太 翔 大輔 大樹 大地 大翔 拓也 拓海 拓真 達也 直樹 直人 直也
和也 和彦 和夫 和男 哲也 哲郎 誠 誠司 隆 隆之 隆志 隆史 浩 浩二 浩一 浩之 博 博之 博文 弘 弘樹 裕 裕太 裕介 裕之
祐介 祐太 雄太 雄一 雄介 悠斗 悠真 悠人 優斗 優太 優 学 修 修一 修平 俊介 俊夫 俊 駿 隼人 蓮 陽斗 陽太 陽介 湊 蒼 樹
律 大和 颯太 颯 晴 朝陽 聡 聡史 智也 智之 智 知也 賢一 賢治 賢 研二 謙一 謙太 恵介 圭介 慶太 孝 孝之 孝史 貴之 貴史
高志 崇 剛 剛志 武 武志 猛 茂 実 稔 勝 勝利 勇 勇気 進 正 正人 正樹 雅人 雅之 雅彦 昌宏 政雄 昭 昭夫 明 章 亮 亮太
亮介 遼 諒 涼太 涼 良太 良平 信也 信一 伸一 真一 真也 慎一 慎也 純 純一 淳 潤 洋 洋平 洋介 洋一 英樹 英明 秀樹 秀明
義明 義男 幸雄 幸男 幸一 幸太 康弘 康平 泰之 泰弘 靖 徹 透 敦 篤 晃 光 光一 輝 輝夫 耕平 航 航平 海斗 匠 司 毅 豊 登
清 満 花子 陽子 洋子 裕子 優子 祐子 由美子 由美 由紀 由紀子 由佳 由香 有紀 有美 幸子 恵子 恵 恵美 恵美子 和子 京子
久美子 久美 美香 美穂 美咲 美紀 美和 美保 美由紀 美智子 美代子 智子 智美 知子 朋子 友美 真由美 真理子 真理 真美 真弓
麻衣 麻美 麻里 舞 彩 彩香 彩花 綾 綾子 綾香 愛 愛子 愛美 葵 結衣 結菜 結子 陽菜 莉子 凛 さくら 桜 七海 奈々 奈緒
奈美 奈津子 直子 尚子 直美 典子 紀子 法子 千尋 千春 千佳 千夏 千恵子 早苗 早紀 沙織 香織 佳織 詩織 里美 里奈 理恵
理沙 理香 梨花 梨沙 留美 瑠美 明美 明子 晴美 春香 遥 遥香 楓 菜摘 菜々子 瞳 泉 忍 薫 静香 静子 節子 光子 文子 弘子
博子 敏子 良子 佐知子 貴子 孝子 雅子 順子 純子 淳子 晶子 昌子 啓子 圭子 敬子 景子 律子 玲子 怜奈 涼子 亜紀 亜希子
亜美 あゆみ 歩美 めぐみ ひろみ まゆみ かおり あかね ゆかり みゆき さゆり ゆうこ けいこ たろう はなこ あおい ひなた
未来 美月 心春 紬 凪 澪
"""
JAPANESE_GIVEN_NAMES = frozenset(_JAPANESE_GIVEN_NAMES.split())

_ENGLISH_SURNAMES = """
Smith Johnson Williams Brown Jones Garcia Miller Davis Rodriguez Martinez Hernandez Lopez Gonzalez Wilson Anderson
Thomas Taylor Moore Jackson Martin Lee Perez Thompson White Harris Sanchez Clark Ramirez Lewis Robinson Walker Young
Allen King Wright Scott Torres Nguyen Hill Flores Green Adams Nelson Baker Hall Rivera Campbell Mitchell Carter
Roberts Gomez Phillips Evans Turner Diaz Parker Cruz Edwards Collins Reyes Stewart Morris Morales Murphy Cook Rogers
Gutierrez Ortiz Morgan Cooper Peterson Bailey Reed Kelly Howard Ramos Kim Cox Ward Richardson Watson Brooks Chavez
Wood James Bennett Gray Mendoza Ruiz Hughes Price Alvarez Castillo Sanders Patel Myers Long Ross Foster Jimenez
Powell Jenkins Perry Russell Sullivan Bell Coleman Butler Henderson Barnes Gonzales Fisher Vasquez Simmons Graham
Jordan Reynolds Hamilton Ford Wallace Griffin West Cole Hayes Bryant Herrera Gibson Ellis Tran Medina Stevens Murray
Marshall Castro Owens Harrison Fernandez McDonald Woods Washington Kennedy Wells Vargas Henry Chen Freeman Webb
Tucker Guzman Burns Crawford Olson Simpson Porter Hunter Gordon Mendez Silva Shaw Snyder Mason Dixon Munoz Hunt
Hicks Holmes Palmer Wagner Black Robertson Boyd Stone Salazar Fox Warren Mills Meyer Rice Schmidt Garza Daniels
Ferguson Nichols Stephens Soto Weaver Ryan Gardner Payne Grant Dunn Kelley Spencer Hawkins Doe Singh Khan Kumar Wang
Li Zhang Liu Yang Park Choi Cohen O'Brien O'Connor O'Neill MacDonald McCarthy Walsh Byrne Suzuki Sato Tanaka
Takahashi Watanabe Yamamoto Nakamura Kobayashi Ito Kato Yoshida Yamada Sasaki Yamaguchi Matsumoto Inoue Kimura
Hayashi Saito Shimizu
"""
ENGLISH_SURNAMES = frozenset(_ENGLISH_SURNAMES.split())

_ENGLISH_GIVEN_NAMES = """
James John Robert Michael William David Richard Joseph Thomas Charles Christopher Daniel Matthew Anthony Mark Donald
Steven Paul Andrew Joshua Kenneth Kevin Brian George Edward Ronald Timothy Jason Jeffrey Ryan Jacob Gary Nicholas
Eric Jonathan Stephen Larry Justin Scott Brandon Benjamin Samuel Gregory Frank Alexander Raymond Patrick Jack Dennis
Jerry Tyler Aaron Jose Adam Henry Nathan Douglas Zachary Peter Kyle Walter Ethan Jeremy Harold Keith Christian Roger
Noah Gerald Carl Terry Sean Austin Arthur Lawrence Jesse Dylan Bryan Joe Jordan Billy Bruce Albert Willie Gabriel
Logan Alan Juan Wayne Roy Ralph Randy Eugene Vincent Russell Elijah Louis Bobby Philip Johnny Mary Patricia Jennifer
Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Betty Margaret Sandra Ashley Kimberly Emily Donna
Michelle Carol Amanda Dorothy Melissa Deborah Stephanie Rebecca Sharon Laura Cynthia Kathleen Amy Angela Shirley
Anna Brenda Pamela Emma Nicole Helen Samantha Katherine Christine Debra Rachel Carolyn Janet Catherine Maria Heather
Diane Ruth Julie Olivia Joyce Virginia Victoria Kelly Lauren Christina Joan Evelyn Judith Megan Andrea Cheryl Hannah
Jacqueline Martha Gloria Teresa Ann Sara Madison Frances Kathryn Janice Jean Abigail Alice Julia Judy Sophia Grace
Denise Amber Doris Marilyn Danielle Beverly Isabella Theresa Diana Natalie Brittany Charlotte Marie Kayla Alexis
Lori Jane Kate Tom Bob Mike Dave Steve Chris Matt Dan Ben Sam Alex Nick Tony Jim Bill Liam Lucas Oliver Mia Ava
Chloe Ella Lily Zoe Wei Ming Priya Raj Amit Fatima Mohammed Muhammad Ahmed Ali Omar Yuki Hiroshi Kenji Taro Hanako
Keiko Yoko Akira Takashi Satoshi Naoko Haruka Sakura Kenta Daisuke Takeshi Yuko Megumi Ayumi Carlos Luis Miguel
Sofia Elena Ivan Olga Pierre Hans
"""
ENGLISH_GIVEN_NAMES = frozenset(_ENGLISH_GIVEN_NAMES.split())

NO_NAME_BEFORE = {
    "様": frozenset(
        "皆客神仏王奥模仕同多異一各有姫殿上外何他左右紋文今貴方旦主者員師長生社家親母父兄姉弟妹娘子孫嫁婿店部課方町国"
    ),
    "さん": frozenset(
        "皆者員師屋長生客手家達方官士役子娘孫夫妻母父兄姉弟妹嫁婿親人女男婦主業社店局園校院庁所会団課部室係奥沢医神王爺婆達友区市県"
    ),
    "氏": frozenset("同両彼摂華某諸源平姓各貴無藤"),
}
"""Last characters of words that no surname ends: `看護師さん`, `お客様`, `同氏`."""

_NO_NAMES = """
皆様 客様 神様 王様 仏様 奥様 殿様 若様 姫様 仕様 模様 同様 多様 異様 一様 各位 有様 息子 担任 校長 教頭 医者 先輩
後輩 沢山 御客 御社 貴社 弊社 当社 本社 患者 学生 生徒 児童 社長 部長 課長 係長 店長 院長 園長 会長 主任 専務 常務
教授 博士 監督 選手 議員 市長 知事 首相 大臣 ユーザー ユーザ クライアント パートナー メーカー オーナー ベンダー
サプライヤー カスタマー テナント ゲスト メンバー スタッフ ドライバー パパ ママ サンタ ペンギン ウサギ ゾウ ライオン
ネコ イヌ クマ キツネ タヌキ サル パンダ コック パティシエ エンジニア デザイナー リーダー マネージャー サラリーマン
ドナー ドクター ヘルパー モデル アイドル タレント キャスター ライター アーティスト ファン リスナー フォロワー
オペレーター ホスト サポーター スポンサー ベテラン
"""
NO_NAMES = frozenset(_NO_NAMES.split())
"""Words that stand before an honorific and are no names."""

_NOT_GIVEN = """
未定 不明 何 匿名 秘密 非公開 未記入 必須 任意 変数 以下 上記 下記 記入 入力 株式会社 有限会社 会社 同上 なし 無し
省略 本人 各自
"""
NOT_GIVEN = frozenset(_NOT_GIVEN.split())
"""What forms say in place of a name."""
