package footprint

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestOnlyWhatIsNeverWrittenIsDropped(t *testing.T) {
	const maps = `00400000-019d8000 r-xp 00000000 fd:00 1234                               /usr/bin/fairlead
019d8000-0391b000 r--p 015d8000 fd:00 1234                               /usr/bin/fairlead
0391b000-03b18000 rw-p 0351b000 fd:00 1234                               /usr/bin/fairlead
03b18000-05b7b000 rw-p 00000000 00:00 0
7ffb18a91000-7ffb18ab7000 r--p 00000000 fd:00 77                         /lib/usr/bin/fairlead
7ffb18b00000-7ffb18b01000 r--s 00000000 fd:00 1234                       /usr/bin/fairlead
7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0                          [vdso]
`
	got, err := parseMaps(strings.NewReader(maps), "/usr/bin/fairlead")
	if want := []span{{0x400000, 0x19d8000}, {0x19d8000, 0x391b000}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%x, %v", got, err)
	}
	if got, err := parseMaps(strings.NewReader("zz /usr/bin/fairlead\n"), "/usr/bin/fairlead"); err == nil {
		t.Errorf("%x", got)
	}
}

// programKiB is what is resident of the program's read-only mappings.
func programKiB(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Skip(err)
	}
	mine := false
	for line := range bytes.Lines(b) {
		var k int
		switch f := strings.Fields(string(line)); {
		case len(f) > 1 && !strings.HasSuffix(f[0], ":"):
			mine = f[len(f)-1] == exe && !strings.Contains(f[1], "w")
		case mine:
			if c, err := fmt.Sscanf(string(line), "Rss: %d kB", &k); err == nil && c == 1 {
				n += k
			}
		}
	}
	return n
}

func TestReleaseDropsTheProgramAndItStillRuns(t *testing.T) {
	before := programKiB(t)
	Release()
	after := programKiB(t)
	t.Logf("%d KiB before, %d KiB after", before, after)
	if after >= before {
		t.Errorf("%d KiB before, %d KiB after", before, after)
	}
}
