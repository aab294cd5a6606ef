package dlp

import "testing"

func TestEveryPersonalDetectorHasExamples(t *testing.T) {
	pos, neg := checkTable(t, "testdata/personal.txt")
	total := 0
	for _, typ := range PersonalTypes() {
		total += pos[typ] + neg[typ]
		if cases := detectorCases[typ]; len(cases) == 0 && (pos[typ] < 2 || neg[typ] < 3) {
			t.Errorf("%s: %d positive and %d negative examples: want at least 2 and 3", typ, pos[typ], neg[typ])
		}
	}
	kinds := len(PersonalTypes())
	t.Logf("%d kinds of personal data, %d examples besides those of TestDetectors", kinds, total)
	if kinds < 110 || total < 600 {
		t.Errorf("%d kinds of personal data, %d examples: some got lost", kinds, total)
	}
}
