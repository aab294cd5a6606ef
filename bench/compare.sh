#!/bin/sh
# compare.sh REF [flags of bench]: builds Fairlead of REF in a temporary
# worktree and compares it with ../bin/fairlead, interleaved. Started by
# make bench-compare in the directory bench.
set -eu
ref=${1:?usage: make bench-compare BASE=ref}
shift
commit=$(git rev-parse --verify --quiet "$ref^{commit}") || { echo "there is no commit $ref" >&2; exit 1; }
dir=$(mktemp -d)
trap 'git worktree remove --force "$dir/tree" 2>/dev/null || true; rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
git worktree add --quiet --detach "$dir/tree" "$commit"
(cd "$dir/tree" && CGO_ENABLED=0 "${GO:-go}" build -pgo=auto -trimpath -tags grpcnotrace -ldflags '-s -w' -o "$dir/fairlead" ./cmd/fairlead)
../bin/bench -contenders "base=$dir/fairlead,fairlead" -baseline base "$@"
