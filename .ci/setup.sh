#!/bin/sh
# Make a virtual environment from the hashed lock: sh .ci/setup.sh DIRECTORY [LOCK]
#
# It is done when its stamp, written last, is the checksum of what it was made from; an
# interrupted set-up has no stamp and is made again, a moved folder has another path in it.
set -eu
venv=$1
lock=${2:-requirements.lock}
stamp=$venv/.$(basename "$lock").stamp

checksum() {
    { cat pyproject.toml "$lock"; printf '%s\n' "$PWD" "$venv" "${PYTHON:-}"; } | cksum
}

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(checksum)" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

# The first interpreter that runs and is new enough; a pyenv shim may exist and not run.
find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 12)))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
        if [ -n "${PYTHON:-}" ]; then break; fi
    done
    echo "rlx needs Python 3.11 or 3.12 (found none${PYTHON:+ at $PYTHON}); say where: make PYTHON=/path/to/python3.11" >&2
    exit 2
}

mkdir -p .cache
if [ "$lock" = requirements.lock ]; then
    python=$(find_python)
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" >.cache/venv.log 2>&1; then
        # Debian's python without python3-venv: the same from PyPI's virtualenv, kept in the checkout.
        rm -rf "$venv"
        "$python" -m pip install --quiet --target .cache/virtualenv virtualenv
        PYTHONPATH=.cache/virtualenv "$python" -m virtualenv --quiet "$venv"
    fi
fi

echo "rlx: installing $lock into $venv (about a minute; 2.5 GB with TensorFlow for the export)"
if command -v uv >/dev/null 2>&1; then
    uv pip install --quiet --python "$venv/bin/python" --require-hashes -r "$lock"
else
    "$venv/bin/python" -m pip install --quiet --require-hashes -r "$lock"
fi
if [ "$lock" = requirements.lock ]; then
    "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --no-index -e .
fi
checksum >"$stamp.new"
mv "$stamp.new" "$stamp"
