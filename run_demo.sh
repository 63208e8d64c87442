#!/usr/bin/env bash
# Draw faces, train a student with a teacher, train the same student without a teacher, and score both. Needs Python
# 3.10 to 3.13, but no GPU and no data. The virtual environment is .venv (or VENV=path). The results are in output/demo.
set -euo pipefail
cd "$(dirname "$0")"
source ./environment.sh
make_environment requirements/requirement.txt
OUT=output/demo

run() {
    echo "+ python $*"
    "$VENV/bin/python" "$@"
}

rm -rf "$OUT"
run demo/make_demo_data.py "$OUT/data" --identities 400 --images 16 --pairs 600
run train/train_AdaDistill.py --config config/demo.py
run train/train_standalone.py --config config/demo.py output="$OUT/standalone"
for name in adadistill standalone; do
    checkpoint=$(ls -v "$OUT/$name"/*backbone.pth | tail -n 1)
    run eval/run_full_eval.py --config config/demo.py --checkpoint "$checkpoint" --results-json "$OUT/$name.json"
done
run eval/run_full_eval.py --config config/demo.py width=0.5 --checkpoint demo/teacher.pth --results-json "$OUT/teacher.json"

echo
run eval/compare.py "$OUT/standalone.json" "$OUT/adadistill.json" "$OUT/teacher.json"
echo
echo "distilled student: $(ls -v "$OUT"/adadistill/*backbone.pth | tail -n 1)"
echo "logs:   $OUT/adadistill/training.log, metrics.jsonl, tensorboard/ (and $OUT/standalone/...)"
echo "curves: $OUT/adadistill/curves.png    first batch: $OUT/adadistill/first_batch.png"
