package format

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

type timeFunc func(dst []byte, t time.Time) []byte

// startTime is %START_TIME(spec)%, by default "2006-01-02T15:04:05.000Z".
func startTime(of func(*Context) time.Time) func(command) (op, error) {
	return func(c command) (op, error) {
		layout, err := compileTime(c.sub)
		if err != nil {
			return op{}, err
		}
		return c.truncated(func(dst []byte, x *Context) ([]byte, bool) {
			if x.Info == nil {
				return dst, false
			}
			t := of(x)
			if t.IsZero() {
				return dst, false
			}
			return layout(dst, t), true
		}), nil
	}
}

// compileTime compiles a strftime specification with Envoy's additions: %f
// (nanoseconds), %1f … %9f, %s (seconds since the epoch), and absl's %E forms.
// Times are UTC.
func compileTime(spec string) (timeFunc, error) {
	if spec == "" {
		return func(dst []byte, t time.Time) []byte { return appendRFC3339Milli(dst, t.UTC()) }, nil
	}
	var fs []timeFunc
	for i := 0; i < len(spec); {
		if spec[i] != '%' {
			j := strings.IndexByte(spec[i:], '%')
			if j < 0 {
				j = len(spec) - i
			}
			lit := spec[i : i+j]
			fs = append(fs, func(dst []byte, _ time.Time) []byte { return append(dst, lit...) })
			i += j
			continue
		}
		f, n := timeVerb(spec[i+1:])
		if f == nil {
			return nil, fmt.Errorf("unknown time specifier %q in %q", spec[i:min(i+3, len(spec))], spec)
		}
		fs = append(fs, f)
		i += 1 + n
	}
	return func(dst []byte, t time.Time) []byte {
		t = t.UTC()
		for _, f := range fs {
			dst = f(dst, t)
		}
		return dst
	}, nil
}

// timeVerb returns the function of the specifier at the start of s (without
// "%") and its length.
func timeVerb(s string) (timeFunc, int) {
	if s == "" {
		return nil, 0
	}
	if f, ok := timeVerbs[s[0]]; ok {
		return f, 1
	}
	if s[0] >= '1' && s[0] <= '9' && len(s) > 1 && s[1] == 'f' {
		return subseconds(int(s[0] - '0')), 2
	}
	if s[0] != 'E' {
		return nil, 0
	}
	for verb, f := range map[string]timeFunc{
		"Ez":  func(dst []byte, _ time.Time) []byte { return append(dst, "+00:00"...) },
		"E*z": func(dst []byte, _ time.Time) []byte { return append(dst, "+00:00:00"...) },
		"ET":  func(dst []byte, _ time.Time) []byte { return append(dst, 'T') },
		"E4Y": func(dst []byte, t time.Time) []byte { return pad(dst, t.Year(), 4) },
		"E*f": fraction,
		"E*S": func(dst []byte, t time.Time) []byte {
			dst = pad(dst, t.Second(), 2)
			if t.Nanosecond() != 0 {
				dst = fraction(append(dst, '.'), t)
			}
			return dst
		},
	} {
		if strings.HasPrefix(s, verb) {
			return f, len(verb)
		}
	}
	if len(s) > 2 && s[1] >= '0' && s[1] <= '9' && (s[2] == 'S' || s[2] == 'f') {
		sub := subseconds(int(s[1] - '0'))
		if s[2] == 'f' {
			return sub, 3
		}
		if s[1] == '0' {
			return timeVerbs['S'], 3
		}
		return func(dst []byte, t time.Time) []byte { return sub(append(pad(dst, t.Second(), 2), '.'), t) }, 3
	}
	return nil, 0
}

// fraction appends the nanoseconds without trailing zeros, "0" if none.
func fraction(dst []byte, t time.Time) []byte {
	n := len(dst)
	dst = pad(dst, t.Nanosecond(), 9)
	for len(dst) > n+1 && dst[len(dst)-1] == '0' {
		dst = dst[:len(dst)-1]
	}
	return dst
}

func subseconds(digits int) timeFunc {
	return func(dst []byte, t time.Time) []byte {
		if digits == 0 {
			return dst
		}
		n := len(dst)
		return pad(dst, t.Nanosecond(), 9)[:n+digits]
	}
}

var timeVerbs = map[byte]timeFunc{
	'Y': func(dst []byte, t time.Time) []byte { return strconv.AppendInt(dst, int64(t.Year()), 10) },
	'C': func(dst []byte, t time.Time) []byte { return pad(dst, t.Year()/100, 2) },
	'y': func(dst []byte, t time.Time) []byte { return pad(dst, t.Year()%100, 2) },
	'm': func(dst []byte, t time.Time) []byte { return pad(dst, int(t.Month()), 2) },
	'd': func(dst []byte, t time.Time) []byte { return pad(dst, t.Day(), 2) },
	'e': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "_2") },
	'j': func(dst []byte, t time.Time) []byte { return pad(dst, t.YearDay(), 3) },
	'H': func(dst []byte, t time.Time) []byte { return pad(dst, t.Hour(), 2) },
	'I': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "03") },
	'M': func(dst []byte, t time.Time) []byte { return pad(dst, t.Minute(), 2) },
	'S': func(dst []byte, t time.Time) []byte { return pad(dst, t.Second(), 2) },
	's': func(dst []byte, t time.Time) []byte { return strconv.AppendInt(dst, t.Unix(), 10) },
	'f': func(dst []byte, t time.Time) []byte { return pad(dst, t.Nanosecond(), 9) },
	'a': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "Mon") },
	'A': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "Monday") },
	'b': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "Jan") },
	'h': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "Jan") },
	'B': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "January") },
	'p': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "PM") },
	'Z': func(dst []byte, _ time.Time) []byte { return append(dst, "UTC"...) },
	'z': func(dst []byte, _ time.Time) []byte { return append(dst, "+0000"...) },
	'n': func(dst []byte, _ time.Time) []byte { return append(dst, '\n') },
	't': func(dst []byte, _ time.Time) []byte { return append(dst, '\t') },
	'%': func(dst []byte, _ time.Time) []byte { return append(dst, '%') },
	'D': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "01/02/06") },
	'F': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "2006-01-02") },
	'R': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "15:04") },
	'T': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "15:04:05") },
	'r': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "03:04:05 PM") },
	'c': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "Mon Jan _2 15:04:05 2006") },
	'x': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "01/02/06") },
	'X': func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, "15:04:05") },
	'u': func(dst []byte, t time.Time) []byte { return pad(dst, (int(t.Weekday())+6)%7+1, 1) },
	'w': func(dst []byte, t time.Time) []byte { return pad(dst, int(t.Weekday()), 1) },
	'G': func(dst []byte, t time.Time) []byte { y, _ := t.ISOWeek(); return pad(dst, y, 4) },
	'g': func(dst []byte, t time.Time) []byte { y, _ := t.ISOWeek(); return pad(dst, y%100, 2) },
	'V': func(dst []byte, t time.Time) []byte { _, w := t.ISOWeek(); return pad(dst, w, 2) },
	'U': func(dst []byte, t time.Time) []byte { return pad(dst, (t.YearDay()+6-int(t.Weekday()))/7, 2) },
	'W': func(dst []byte, t time.Time) []byte { return pad(dst, (t.YearDay()+6-(int(t.Weekday())+6)%7)/7, 2) },
}

// pad appends n in decimal, at least width digits.
func pad(dst []byte, n, width int) []byte {
	var buf [20]byte
	i := len(buf)
	for n > 0 || width > 0 {
		i--
		buf[i] = byte('0' + n%10)
		n, width = n/10, width-1
	}
	return append(dst, buf[i:]...)
}

// appendRFC3339Milli appends "2006-01-02T15:04:05.000Z". t is UTC.
func appendRFC3339Milli(dst []byte, t time.Time) []byte {
	s := lastSecond.Load()
	if s == nil || s.unix != t.Unix() {
		s = &second{t.Unix(), t.AppendFormat(nil, "2006-01-02T15:04:05.")}
		lastSecond.Store(s)
	}
	ms := t.Nanosecond() / 1e6
	dst = append(dst, s.text...)
	return append(dst, byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10), 'Z')
}

// second is a time rendered up to its fraction: lines of a log share it.
type second struct {
	unix int64
	text []byte
}

var lastSecond atomic.Pointer[second]

// commonDuration is %COMMON_DURATION(START:END:PRECISION)%.
func commonDuration(c command) (op, error) {
	parts := strings.Split(c.sub, ":")
	if len(parts) < 2 || len(parts) > 3 || c.max >= 0 {
		return op{}, fmt.Errorf("wants COMMON_DURATION(START:END:PRECISION), has %q", c.sub)
	}
	from, ok1 := timePoints[parts[0]]
	to, ok2 := timePoints[parts[1]]
	if !ok1 || !ok2 {
		return op{}, fmt.Errorf("unknown time point in %q: want DS_RX_BEG, DS_RX_END, US_RX_BEG, US_RX_END, DS_TX_BEG or DS_TX_END", c.sub)
	}
	unit := time.Millisecond
	if len(parts) == 3 {
		switch parts[2] {
		case "ms":
		case "us":
			unit = time.Microsecond
		case "ns":
			unit = time.Nanosecond
		default:
			return op{}, fmt.Errorf("unknown precision %q: want ms, us or ns", parts[2])
		}
	}
	return number(func(x *Context) (int64, bool) { return between(from(x), to(x), unit) }), nil
}

// responseSent is when the last byte of the response went out, zero if it did
// not.
func responseSent(x *Context) time.Time {
	if x.Info.Cut {
		return time.Time{}
	}
	return x.Info.End
}

var timePoints = map[string]func(*Context) time.Time{
	"DS_RX_BEG": func(x *Context) time.Time { return x.Info.Start },
	"DS_RX_END": func(x *Context) time.Time { return x.Info.RequestComplete },
	"US_RX_BEG": func(x *Context) time.Time { return x.Info.FirstUpstreamRx },
	"US_RX_END": func(x *Context) time.Time { return x.Info.LastUpstreamRx },
	"DS_TX_BEG": func(x *Context) time.Time { return x.Info.FirstDownstreamTx },
	"DS_TX_END": responseSent,
}
