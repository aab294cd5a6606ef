package footprint

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// span is a mapping of the program that is never written to.
type span struct{ from, to uintptr }

// dropProgram unmaps the resident pages of code and constants. They are clean
// copies of the file, so that nothing is lost.
func dropProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	spans, err := parseMaps(bytes.NewReader(maps), exe)
	if err != nil {
		return err
	}
	for _, s := range spans {
		if _, _, e := syscall.RawSyscall(syscall.SYS_MADVISE, s.from, s.to-s.from, syscall.MADV_DONTNEED); e != 0 {
			return e
		}
	}
	return nil
}

// parseMaps returns the private mappings of exe without write permission in
// /proc/PID/maps (proc(5)).
func parseMaps(r io.Reader, exe string) ([]span, error) {
	var out []span
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		line := sc.Bytes()
		if !bytes.HasSuffix(line, []byte(exe)) {
			continue
		}
		var s span
		var perms, offset, device, inode string
		if _, err := fmt.Sscanf(string(line), "%x-%x %s %s %s %s", &s.from, &s.to, &perms, &offset, &device, &inode); err != nil {
			return nil, fmt.Errorf("/proc/self/maps: %q: %w", line, err)
		}
		_, path, _ := strings.Cut(string(line), " "+inode+" ")
		if strings.TrimSpace(path) == exe && perms[0] == 'r' && perms[1] == '-' && perms[3] == 'p' {
			out = append(out, s)
		}
	}
	return out, sc.Err()
}
