package xdsresource_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// mutator changes one field of a resource after the other, also within Any, and puts
// it back.
type mutator struct {
	seen map[protoreflect.FullName]int
}

// perField is in how many places a field of a message is changed.
const perField = 2

// others are values that a scalar may have instead.
func others(fd protoreflect.FieldDescriptor) (out []protoreflect.Value) {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		out = append(out, protoreflect.ValueOfBool(true), protoreflect.ValueOfBool(false))
	case protoreflect.EnumKind:
		values := fd.Enum().Values()
		for i := range values.Len() {
			out = append(out, protoreflect.ValueOfEnum(values.Get(i).Number()))
		}
		out = append(out, protoreflect.ValueOfEnum(9999), protoreflect.ValueOfEnum(-1))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		out = append(out, protoreflect.ValueOfInt32(0), protoreflect.ValueOfInt32(math.MinInt32), protoreflect.ValueOfInt32(math.MaxInt32))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		out = append(out, protoreflect.ValueOfInt64(0), protoreflect.ValueOfInt64(math.MinInt64), protoreflect.ValueOfInt64(math.MaxInt64))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		out = append(out, protoreflect.ValueOfUint32(0), protoreflect.ValueOfUint32(math.MaxUint32))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		out = append(out, protoreflect.ValueOfUint64(0), protoreflect.ValueOfUint64(math.MaxUint64))
	case protoreflect.DoubleKind:
		out = append(out, protoreflect.ValueOfFloat64(math.NaN()), protoreflect.ValueOfFloat64(math.Inf(-1)), protoreflect.ValueOfFloat64(math.MaxFloat64))
	case protoreflect.FloatKind:
		out = append(out, protoreflect.ValueOfFloat32(float32(math.NaN())), protoreflect.ValueOfFloat32(math.MaxFloat32))
	case protoreflect.StringKind:
		for _, s := range []string{"", "\x00", "*", "(", "%", strings.Repeat("x", 10_000)} {
			out = append(out, protoreflect.ValueOfString(s))
		}
	case protoreflect.BytesKind:
		out = append(out, protoreflect.ValueOfBytes(nil), protoreflect.ValueOfBytes([]byte("\xff\xff\xff")))
	default:
	}
	return out
}

// fields changes each field of m, and calls emit for each change.
func (u *mutator) fields(m protoreflect.Message, emit func(what string)) {
	var fds []protoreflect.FieldDescriptor
	m.Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		fds = append(fds, fd)
		return true
	})
	slices.SortFunc(fds, func(a, b protoreflect.FieldDescriptor) int { return int(a.Number() - b.Number()) })
	for _, fd := range fds {
		if u.seen[fd.FullName()]++; u.seen[fd.FullName()] <= perField {
			u.change(m, fd, emit)
		}
		v := m.Get(fd)
		isMessage := fd.Kind() == protoreflect.MessageKind
		switch {
		case fd.IsMap():
			if fd.MapValue().Kind() == protoreflect.MessageKind {
				v.Map().Range(func(_ protoreflect.MapKey, x protoreflect.Value) bool {
					u.fields(x.Message(), emit)
					return false
				})
			}
		case fd.IsList() && isMessage:
			for i := range min(v.List().Len(), 3) {
				u.within(v.List().Get(i).Message(), emit)
			}
		case isMessage && !fd.IsList():
			u.within(v.Message(), emit)
		}
	}
}

func (u *mutator) change(m protoreflect.Message, fd protoreflect.FieldDescriptor, emit func(string)) {
	name := string(fd.FullName())
	v := m.Get(fd)
	switch { // lists and maps are the field's own
	case fd.IsMap():
		c := m.NewField(fd)
		v.Map().Range(func(k protoreflect.MapKey, x protoreflect.Value) bool {
			c.Map().Set(k, x)
			return true
		})
		v = c
	case fd.IsList():
		c := m.NewField(fd)
		for i := range v.List().Len() {
			c.List().Append(v.List().Get(i))
		}
		v = c
	}
	m.Clear(fd)
	emit(name + " cleared")
	switch {
	case fd.IsMap():
	case fd.IsList():
		twice := m.NewField(fd)
		for range 2 {
			for i := range v.List().Len() {
				twice.List().Append(v.List().Get(i))
			}
		}
		m.Set(fd, twice)
		emit(name + " twice")
	case fd.Kind() == protoreflect.MessageKind:
		m.Set(fd, m.NewField(fd))
		emit(name + " empty")
	default:
		for _, x := range others(fd) {
			m.Set(fd, x)
			emit(fmt.Sprintf("%s %.20q", name, x.String()))
		}
	}
	m.Set(fd, v)
}

// within goes into m, and if that is an Any into what it holds.
func (u *mutator) within(m protoreflect.Message, emit func(string)) {
	a, ok := m.Interface().(*anypb.Any)
	if !ok {
		u.fields(m, emit)
		return
	}
	inner, err := a.UnmarshalNew()
	if err != nil {
		return
	}
	was := a.Value
	u.fields(inner.ProtoReflect(), func(what string) {
		if b, err := proto.Marshal(inner); err == nil { // not: a string that is no UTF-8
			a.Value = b
			emit(what)
		}
	})
	a.Value = was
}

// Each field of istiod's real resources is cleared, made empty, doubled, and given
// the least, the largest and every named value: what comes is accepted or refused
// with a reason, in no time.
func TestEveryFieldOfIstiodsResourcesMayHaveAnyValue(t *testing.T) {
	if testing.Short() {
		t.Skip("it decodes thousands of resources")
	}
	d := xdsresource.NewDecoder(builtin.Registry(), noFiles)
	u := &mutator{seen: map[protoreflect.FullName]int{}}
	resources, changes, refused := 0, 0, 0
	slowest, which := time.Duration(0), ""
	for _, ft := range fuzzTypes {
		for kind, url := range dumpTypes {
			if url != ft.url {
				continue
			}
			var dumps []dumped
			for _, sc := range scenarios {
				dumps = append(dumps, readDump(t, sc, kind)...)
			}
			// The smallest first: each field is changed where that costs least.
			slices.SortStableFunc(dumps, func(a, b dumped) int { return len(a.Resource) - len(b.Resource) })
			for _, r := range dumps {
				m := ft.new()
				if err := xdsresource.Unmarshal(r.Resource, m); err != nil {
					t.Fatal(err)
				}
				resources++
				u.fields(m.ProtoReflect(), func(what string) {
					if changes++; changes%scale() != 0 {
						return
					}
					b, err := proto.Marshal(m)
					if err != nil { // a string that is no UTF-8
						changes--
						return
					}
					var v any
					took := processor(t, func() { v, err = d.Decode(url, b) })
					if took > slowest {
						slowest, which = took, what
					}
					switch {
					case err != nil && err.Error() == "", err == nil && v == nil:
						t.Errorf("%s: %v, %v", what, v, err)
					case err != nil:
						refused++
					}
				})
			}
		}
	}
	t.Logf("%d resources, %d changes of %d fields, %d refused, the slowest in %v: %s", resources, changes, len(u.seen), refused, slowest, which)
	if refused *= scale(); resources < 400 || changes < 2500 || refused < 400 || changes-refused < 400 {
		t.Errorf("%d resources, %d changes, %d refused: too few to say anything", resources, changes, refused)
	}
	if slowest > 2*time.Second { // of 100 ms
		t.Errorf("%s takes %v", which, slowest)
	}
}
