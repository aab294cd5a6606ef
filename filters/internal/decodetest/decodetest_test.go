package decodetest

import (
	"fmt"
	"reflect"
	"regexp"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

// failures counts what a check says.
type failures struct {
	testing.TB
	said []string
}

func (f *failures) Helper() {}
func (f *failures) Fatalf(format string, args ...any) {
	f.said = append(f.said, fmt.Sprintf(format, args...))
}

const duration = "type.googleapis.com/google.protobuf.Duration"

func good(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	m := &durationpb.Duration{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	return m.AsDuration(), nil
}

func TestADecoderThatLooksAtTheFormIsFound(t *testing.T) {
	n := 0
	for name, c := range map[string]struct {
		d    Decoder
		in   filters.Any
		want bool
	}{
		"good JSON": {good, filters.Any{JSON: true, Value: []byte(`"3s"`)}, true},
		"good wire": {good, filters.Any{Value: []byte{8, 3}}, true},
		"bad JSON":  {good, filters.Any{JSON: true, Value: []byte(`{`)}, true},
		"length": {func(a filters.Any, d *filters.Decoding) (filters.Config, error) {
			_, err := good(a, d)
			return len(a.Value), err
		}, filters.Any{JSON: true, Value: []byte(`"3s"`)}, false},
		"JSON only": {func(a filters.Any, d *filters.Decoding) (filters.Config, error) {
			if !a.JSON {
				return nil, fmt.Errorf("%d bytes", len(a.Value))
			}
			return good(a, d)
		}, filters.Any{JSON: true, Value: []byte(`"3s"`)}, false},
		"accepts all": {func(filters.Any, *filters.Decoding) (filters.Config, error) { return 1, nil }, filters.Any{Value: []byte{8}}, false},
		"counts": {func(filters.Any, *filters.Decoding) (filters.Config, error) {
			n++
			return n, nil
		}, filters.Any{Value: []byte{8, 1}}, false},
	} {
		f := &failures{TB: t}
		c.in.TypeURL = duration
		_, _ = Forms(f, c.in, c.d)
		if (len(f.said) == 0) != c.want {
			t.Errorf("%s: %q", name, f.said)
		}
	}
}

func TestConfigurationsAreComparedByWhatTheyHold(t *testing.T) {
	type config struct {
		r  *regexp.Regexp
		f  func()
		m  map[string][]int
		me *config
	}
	of := func(src string, n int) *config {
		c := &config{r: regexp.MustCompile(src), f: func() {}, m: map[string][]int{"a": {n}}}
		c.me = c
		return c
	}
	eq := func(a, b any) bool { return equal(reflect.ValueOf(a), reflect.ValueOf(b), 0) }
	if !eq(of("a", 1), of("a", 1)) {
		t.Error("equal ones differ")
	}
	if eq(of("a", 1), of("b", 1)) || eq(of("a", 1), of("a", 2)) || eq(of("a", 1), &config{}) {
		t.Error("different ones are equal")
	}
}
