package streaminfo

import (
	"net/netip"
	"reflect"
	"testing"
	"time"
	"unsafe"
)

// fill makes every field of v different from zero, as far as a test can.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.String:
		v.SetString("s" + string(rune('a'+*n%26)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(*n%100 + 1))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n%100 + 1))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), n)
	case reflect.Struct:
		switch v.Type() {
		case reflect.TypeFor[time.Time]():
			v.Set(reflect.ValueOf(time.Unix(int64(*n), 5)))
		case reflect.TypeFor[netip.AddrPort]():
			v.Set(reflect.ValueOf(netip.MustParseAddrPort("1.2.3.4:5")))
		case reflect.TypeFor[FilterState](), reflect.TypeFor[Metadata]():
		default:
			for _, f := range v.Fields() {
				fill(f, n)
			}
		}
	default:
		panic(v.Type().String())
	}
}

func roundTrip(i Info) (back Info) {
	var ps Places
	p := i.Pack(&ps)
	back.FilterState.entries = make([]entry, 0, 4) // of a pooled one
	back.Unpack(&p)
	if len(back.FilterState.entries) == 0 {
		back.FilterState.entries = nil
	}
	return back
}

// Whatever field is added to Info, it gets through.
func TestAPackedInfoLosesNothing(t *testing.T) {
	typ, fields := reflect.TypeFor[Info](), 0
	check := func(name string, i Info) {
		t.Helper()
		want := i
		if i.Conn != nil {
			want.FilterState.parent = &i.Conn.FilterState
		}
		if got := roundTrip(i); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got\n%+v\nwant\n%+v", name, got, want)
		}
	}
	var all Info
	n := 0
	for k := range typ.NumField() {
		var one Info
		fill(reflect.ValueOf(&one).Elem().Field(k), &n)
		fill(reflect.ValueOf(&all).Elem().Field(k), &n)
		check(typ.Field(k).Name, one)
		fields++
	}
	all.FilterState.Set("k", String("v"), SharingOnce)
	all.Metadata.Set("ns", "k", 1.0)
	check("all", all)
	check("none", Info{})
	if fields < 30 {
		t.Errorf("%d fields", fields)
	}
	start := time.Now()
	check("times", Info{
		Conn: &Conn{}, Start: start, FirstUpstreamRx: start.Add(time.Second), FirstDownstreamTx: start.Add(2 * time.Second), End: start.Add(time.Minute),
		LastUpstreamRx: start, RequestComplete: start.Add(-1), ResponseCode: 1 << 20, AttemptCount: 300, Details: "via_upstream",
	})
	check("no duration", Info{Start: start, FirstUpstreamRx: start, FirstDownstreamTx: start.Add(-1), AttemptCount: -1, ResponseCode: -1})
}

func TestPackedStreamsShareWhatIsEqual(t *testing.T) {
	var ps Places
	a, b, c := Info{RouteName: "r"}, Info{RouteName: "r"}, Info{RouteName: "s"}
	pa, pb, pc := a.Pack(&ps), b.Pack(&ps), c.Pack(&ps)
	if pa.place != pb.place || pa.place == pc.place || pa.rest != nil {
		t.Errorf("%p %p %p, rest %v", pa.place, pb.place, pc.place, pa.rest)
	}
	if n, m := unsafe.Sizeof(pa), unsafe.Sizeof(a); n > m/4 {
		t.Errorf("%d bytes of %d", n, m)
	}
}

func TestABlankInfoSaysNoMoreThanItsConnection(t *testing.T) {
	ci := &Conn{}
	n := 0
	for k := range reflect.TypeFor[Info]().NumField() {
		name := reflect.TypeFor[Info]().Field(k).Name
		i := Info{Conn: ci, Start: time.Now()}
		i.FilterState.Reset(&ci.FilterState)
		i.FilterState.entries = make([]entry, 0, 1)
		i.Metadata.m = map[string]map[string]any{}
		if !i.Blank() {
			t.Fatal("nothing was said")
		}
		switch name {
		case "Conn", "Start":
			continue
		case "FilterState":
			i.FilterState.Set("k", String("v"), 0)
		case "Metadata":
			i.Metadata.Set("n", "k", true)
		default:
			fill(reflect.ValueOf(&i).Elem().Field(k), &n)
		}
		before := i
		if i.Blank() || !reflect.DeepEqual(i, before) {
			t.Errorf("%s: blank, or changed", name)
		}
	}
}
