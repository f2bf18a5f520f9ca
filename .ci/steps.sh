# The driver of .ci/run and .ci/deep, sourced by both. A script that uses it defines a function
# step_<name> for each step and a list STEPS of "<name> <budget in seconds>", then calls `main "$@"`.
# Each step runs in a process of its own under `timeout`. The first failure ends the run.

set -euo pipefail
script=$(realpath "$0")
cd "$(dirname "$script")/.."

export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never} CARGO_INCREMENTAL=0
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

main() {
    if [[ ${1-} == --step ]]; then
        "step_$2"
        return
    fi
    local entry name budget known=" "
    for entry in "${STEPS[@]}"; do
        known+="${entry% *} "
    done
    for name in "$@"; do
        [[ $known == *" $name "* ]] || die "no step '$name'; there are:$known"
    done
    for entry in "${STEPS[@]}"; do
        read -r name budget <<<"$entry"
        if (($# == 0)) || [[ " $* " == *" $name "* ]]; then
            run_step "$name" "$budget"
        fi
    done
    echo "== all steps passed in $SECONDS s"
}

run_step() {
    local name=$1 budget=$2 start=$SECONDS status=0
    echo "== $name (at most $budget s)"
    timeout --kill-after=10 "$budget" "$script" --step "$name" || status=$?
    local elapsed=$((SECONDS - start))
    case $status in
        0) echo "== $name passed in $elapsed s" ;;
        124 | 137) die "step '$name' passed its budget of $budget s" ;;
        *) die "step '$name' failed with status $status after $elapsed s" ;;
    esac
}

die() {
    echo "== FAILED: $*" >&2
    exit 1
}

# Runs a command that the README shows, so that what a newcomer copies is what is tested.
readme() {
    grep -qxF -- "$*" README.md || die "README.md has no line '$*'"
    "$@"
}

# Runs every fuzz target for $1 seconds, each from its seeds in git; finds go to a folder that is not.
fuzz_all() {
    local name targets found corpora log
    targets=$(cargo +nightly fuzz list)
    [[ -n $targets ]] || die "there is no fuzz target"
    for name in $targets; do
        found=$target/fuzz-corpus/$name
        mkdir -p "$found"
        corpora=("$found")
        [[ ! -d fuzz/corpus/$name ]] || corpora+=("fuzz/corpus/$name")
        log=$target/fuzz-corpus/$name.log
        echo "-- $name (log in $log)"
        if ! cargo +nightly fuzz run "$name" "${corpora[@]}" -- -max_total_time="$1" -max_len=4096 -timeout=10 \
            -rss_limit_mb=2048 -print_final_stats=1 >"$log" 2>&1; then
            tail -n 60 "$log"
            die "fuzz target '$name' found something: see above, and fuzz/artifacts/$name"
        fi
        grep -E 'number_of_executed_units|new_units_added' "$log"
    done
}
