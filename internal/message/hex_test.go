package message

import (
	"strconv"
	"testing"
)

func TestUnhexIsTheValueOfADigit(t *testing.T) {
	digits := 0
	for c := range 256 {
		want := -1
		if v, err := strconv.ParseUint(string([]byte{byte(c)}), 16, 8); err == nil {
			want = int(v)
			digits++
		}
		if got := Unhex(byte(c)); got != want {
			t.Errorf("%q: %d, want %d", byte(c), got, want)
		}
	}
	if digits != 22 {
		t.Errorf("%d digits", digits)
	}
}
