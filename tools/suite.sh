# Sourced, not run: takes single packages of another Debian release, and leaves this system's own sources, lists and
# packages as they are. Signatures are checked with the system's Debian keyring.
#
#   suite_open SUITE FOLDER       fetches the lists of SUITE into FOLDER/apt
#   suite_depends PACKAGE         prints what PACKAGE depends on, one a line
#   suite_unpack PACKAGE TARGET   downloads PACKAGE and unpacks it below TARGET
#   suite_close                   removes the lists and what was downloaded
#
# What cannot be done ends the script through `die`, which the caller defines: it prints its words and exits.

suite_open() { # SUITE FOLDER
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg codename mirror
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        die "there is no apt here to fetch packages of Debian $1 with"
    [ -r "$keyring" ] || die "no $keyring to check signatures with; run:  apt-get install debian-archive-keyring"

    # The mirror is the one that this system takes its own release from.
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    mirror=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v codename="$codename" \
            '$2 == "main" && ($1 == codename || $1 ~ /^(old)?stable$|^testing$|^unstable$|^sid$/) { print $3; exit }')
    [ -n "$mirror" ] || die "apt's sources name no Debian mirror to fetch packages of $1 from"

    suite_folder=$2/apt
    rm -rf "$suite_folder"
    mkdir -p "$suite_folder/none" "$suite_folder/lists/partial" "$suite_folder/cache/archives/partial"
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$1" >"$suite_folder/sources.list"
    suite_options=(
        -o "Dir::Etc::SourceList=$suite_folder/sources.list" -o "Dir::Etc::SourceParts=$suite_folder/none"
        -o Dir::Etc::Preferences=/dev/null -o "Dir::Etc::PreferencesParts=$suite_folder/none"
        -o "Dir::State::Lists=$suite_folder/lists" -o "Dir::Cache=$suite_folder/cache"
        -o APT::Sandbox::User= -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -o Acquire::Retries=3 -o APT::Update::Error-Mode=any
    )
    apt-get -qq "${suite_options[@]}" update >&2 ||
        die "cannot fetch or verify the lists of $1 from $mirror (network? an old debian-archive-keyring?)"
}

suite_depends() { # PACKAGE
    apt-cache "${suite_options[@]}" depends "$1" | sed -n 's/^ *Depends: //p'
}

suite_unpack() { # PACKAGE TARGET
    (cd "$suite_folder" && apt-get -qq "${suite_options[@]}" download "$1" >&2) || die "cannot download $1"
    dpkg-deb -x "$suite_folder/$1"_*.deb "$2"
}

suite_close() {
    rm -rf "$suite_folder"
}
