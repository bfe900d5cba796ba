"""What `sekisho engine` says, in English and Japanese."""

TABLE: dict[str, tuple[str, str]] = {
    "engine_only_linux": (
        "a build for this machine is made on Linux; on {system} the wheel is what there is",
        "このマシン向けのビルドは Linux のみです。{system} では配布版（wheel）を使います",
    ),
    "engine_mac": (
        "the wheels for macOS are built for its processors already and use the GPU",
        "macOS 用の wheel は最適化済みで、GPU も使います",
    ),
    "engine_windows": (
        "run Sekisho in WSL, where it can be built",
        "WSL で Sekisho を動かすとビルドできます",
    ),
    "engine_no_wheel": (
        "xllamacpp, the llama.cpp to build, is not installed",
        "ビルド対象の llama.cpp（xllamacpp）がインストールされていません",
    ),
    "engine_no_wheel_hint": ("pip install xllamacpp", "pip install xllamacpp"),
    "engine_drives_gpu": (
        "the installed llama.cpp computes on {devices}; a build for the processor would not",
        "インストール済みの llama.cpp は {devices} を使います。プロセッサー向けのビルドでは使えなくなります",
    ),
    "engine_force": ("build it nevertheless: --force", "それでもビルドする場合: --force"),
    "engine_missing": ("this machine lacks what a build needs", "ビルドに必要なものが足りません"),
    "engine_need_compiler": ("a C++ compiler: {needed}", "C++ コンパイラー: {needed}"),
    "engine_need_old_compiler": ("{needed} or newer; {found} is here", "{needed} 以上（現在は {found}）"),
    "engine_need_headers": ("Python's headers: {needed}", "Python のヘッダー: {needed}"),
    "engine_need_pip": ("pip in this environment", "この環境の pip"),
    "engine_need_disk": ("{needed} of disk; {found} are free", "ディスク {needed}（空き {found}）"),
    "engine_need_memory": ("{needed} of memory; {found} are free", "メモリー {needed}（空き {found}）"),
    "engine_plan_processor": ("processor: {processor}", "プロセッサー: {processor}"),
    "engine_plan_features": ("will use: {features}", "使う命令: {features}"),
    "engine_plan_compiler": (
        "compiler: {compiler}, {jobs} at once; build tool: {tool}",
        "コンパイラー: {compiler}（並列 {jobs}）、ビルドツール: {tool}",
    ),
    "engine_plan_fetch": ("pip brings for the build: {tools}", "ビルド用に pip で取得: {tools}"),
    "engine_plan_version": (
        "xllamacpp {version}: sources of 38 MB by pip, {disk} of disk while it builds; about 30 minutes of one core",
        "xllamacpp {version}: ソース 38 MB を pip で取得、ビルド中のディスク {disk}、1 コアで約 30 分",
    ),
    "engine_go": ("Build now?", "ビルドしますか？"),
    "engine_not_now": ("nothing was built", "ビルドしていません"),
    "engine_say_yes": (
        "nobody is at a terminal to say yes: give --yes",
        "端末で確認できません。--yes を付けてください",
    ),
    "engine_trap_none": (
        "AMX: this compiler keeps tile configurations whole (tried)",
        "AMX: このコンパイラーはタイル設定を正しく扱います（確認済み）",
    ),
    "engine_trap_refused": (
        "AMX: the kernel does not let programs use it here (tried)",
        "AMX: カーネルが使用を許可していません（確認済み）",
    ),
    "engine_trap_barrier": (
        "AMX: {compiler} drops part of a tile configuration, and would crash (tried); a barrier repairs it (tried)",
        "AMX: {compiler} はタイル設定の一部を捨てます（確認済み、そのままでは異常終了）。バリアを入れてビルドします",
    ),
    "engine_trap_without_amx": (
        "AMX: {compiler} drops part of a tile configuration, and a barrier does not help: built without AMX",
        "AMX: {compiler} はタイル設定の一部を捨て、バリアでも直らないため、AMX なしでビルドします",
    ),
    "engine_exists": (
        "{build} is built already for this version, compiler and processor; --force builds it again",
        "{build} はビルド済みです（同じバージョン、コンパイラー、プロセッサー）。作り直すには --force",
    ),
    "engine_busy": ("somebody else builds in {folder}", "{folder} で別のビルドが動いています"),
    "engine_build_failed": ("the build failed: {why}", "ビルドに失敗しました: {why}"),
    "engine_log": ("the whole log: {log}", "ログ全体: {log}"),
    "engine_wrong": (
        "the build does not answer as the wheel does, and is not kept: {why}",
        "ビルド結果の応答が wheel と一致しないため、破棄しました: {why}",
    ),
    "engine_trial_failed": ("it could not be compared with the wheel: {why}", "wheel と比較できません: {why}"),
    "engine_crashed": (
        "on the way it crashed: {what}",
        "途中で異常終了がありました: {what}",
    ),
    "engine_plain_buffers": (
        "it runs without its own order of weights (no_extra_bufts), which costs speed",
        "重みの並べ替えなし（no_extra_bufts）で動きます。速度は下がります",
    ),
    "engine_attention_refuted": (
        "its attention is llama.cpp's own: Sekisho's did not answer as the wheel does: {why}",
        "attention は llama.cpp のものを使います。Sekisho のものは応答が wheel と一致しませんでした: {why}",
    ),
    "engine_attention_absent": (
        "its attention is llama.cpp's own: Sekisho's does not go with these sources or this compiler",
        "attention は llama.cpp のものを使います。Sekisho のものはこのソースまたはコンパイラに合いません",
    ),
    "engine_attention": (
        "Attention is Sekisho's: keys and values of 8 and 4 bits are read about as fast as those of 16.",
        "attention は Sekisho のものです。8・4 ビットの KV も 16 ビットと同じ速さで読めます。",
    ),
    "engine_built": (
        "Built in {minutes} minutes with {compiler}: {folder}",
        "{minutes} 分でビルドしました（{compiler}）: {folder}",
    ),
    "engine_alike": (
        "It answers as the wheel does at all KV types (log probabilities within {nats} nats).",
        "すべての KV 型で wheel と同じ応答です（対数確率の差は最大 {nats}）。",
    ),
    "engine_not_far": (
        "it was not compared after a long prompt: the installed llama.cpp answers none with this model; "
        "to do so, name another with --model and --force",
        "長いプロンプトの後では比べていません。このモデルでは wheel が答えません。"
        "比べるには --model で別のモデルを指定し、--force を付けてください",
    ),
    "engine_in_use": (
        "Workers that start from now on use it.",
        "以後に起動するワーカーが使います。",
    ),
    "engine_restart": (
        "Running workers keep what they have: sekisho down, then sekisho up",
        "動作中のワーカーはそのままです。切り替えるには: sekisho down の後に sekisho up",
    ),
    "engine_not_worth": (
        "It is not clearly faster here, and is not used; take it nevertheless: sekisho engine use native",
        "明らかな高速化がないため使いません。使う場合: sekisho engine use native",
    ),
    "engine_unchecked": (
        "It was not checked, and is not used yet; take it: sekisho engine use native",
        "未検証のため、まだ使いません。使う場合: sekisho engine use native",
    ),
    "engine_use_wheel": (
        "Workers that start from now on use the wheel (xllamacpp {version}).",
        "以後に起動するワーカーは wheel（xllamacpp {version}）を使います。",
    ),
    "engine_use_native": (
        "Workers that start from now on use {build}.",
        "以後に起動するワーカーは {build} を使います。",
    ),
    "engine_none_fits": (
        "there is no build for this version and this processor",
        "このバージョンとプロセッサーに合うビルドがありません",
    ),
    "engine_build_hint": ("sekisho engine build-native", "sekisho engine build-native"),
    "engine_which": ("{which}: `wheel` or `native`", "{which}: `wheel` か `native` です"),
    "engine_status_wheel": (
        "Workers use the wheel: xllamacpp {version}",
        "ワーカーは wheel を使います: xllamacpp {version}",
    ),
    "engine_status_native": ("Workers use the build {build}", "ワーカーはビルド {build} を使います"),
    "engine_status_misfit": (
        "The build {build} is chosen but not used: {why}",
        "ビルド {build} が選ばれていますが、使いません: {why}",
    ),
    "engine_status_processor": ("Processor: {processor} ({features})", "プロセッサー: {processor}（{features}）"),
    "engine_step_fetch": ("fetch", "取得"),
    "engine_step_build": ("build", "ビルド"),
    "engine_step_compile": ("compile", "コンパイル"),
    "engine_step_install": ("install", "インストール"),
    "engine_step_check": ("check", "検証"),
    "engine_step_measure": ("measure", "計測"),
    "engine_builds": ("Builds:", "ビルド:"),
    "engine_figures": ("Compared with the wheel, tokens/s:", "wheel との比較（トークン/秒）:"),
    "engine_build": ("build", "ビルド"),
    "engine_used": ("used", "使用"),
    "engine_fits": ("fits", "適合"),
    "engine_yes": ("yes", "はい"),
    "engine_compiler": ("compiler", "コンパイラー"),
    "engine_amx": ("AMX", "AMX"),
    "engine_attention_column": ("Attention", "attention"),
    "engine_built_at": ("built", "ビルド日時"),
    "engine_checked": ("checked", "検証"),
    "engine_kv": ("KV", "KV"),
    "engine_speed": ("speed", "速度"),
    "engine_prefill": ("reading", "読み込み"),
    "engine_decode": ("writing", "書き出し"),
    "engine_wheel": ("wheel", "wheel"),
    "engine_native": ("native", "native"),
    "engine_ratio": ("ratio", "比"),
    "engine_spread": ("least … most", "最小 … 最大"),
}
