package filesource

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairlead-mesh/fairlead/xdsclient"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// decode takes a TypedExtensionConfig; the name of its type URL is the value,
// "bad" is refused, "panic" panics.
func decode(name string, b []byte) (any, []xdsclient.Key, error) {
	var m corev3pb.TypedExtensionConfig
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, nil, err
	}
	switch v := m.GetTypedConfig().GetTypeUrl(); v {
	case "t/bad":
		return nil, nil, errors.New("bad value")
	case "t/panic":
		panic("oops")
	default:
		return v, []xdsclient.Key{{TypeURL: "x", Name: name}}, nil
	}
}

const ecds = xdsresource.ExtensionConfigType

func response(t *testing.T, pairs ...string) []byte {
	t.Helper()
	m := &discoveryv3pb.DiscoveryResponse{VersionInfo: "v"}
	for i := 0; i < len(pairs); i += 2 {
		a, err := anypb.New(&corev3pb.TypedExtensionConfig{Name: pairs[i], TypedConfig: &anypb.Any{TypeUrl: "t/" + pairs[i+1]}})
		if err != nil {
			t.Fatal(err)
		}
		m.Resources = append(m.Resources, a)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func shown(s *Source) string {
	var out []string
	for n, r := range s.Resources()[ecds] {
		v, _ := r.Value.(string)
		out = append(out, n+"="+strings.TrimPrefix(v, "t/"))
	}
	slices.Sort(out)
	for _, f := range s.Files() {
		for _, r := range f.Rejected {
			out = append(out, "rejected "+r.Name)
		}
		if f.Err != nil {
			out = append(out, "broken")
		}
	}
	return strings.Join(out, " ")
}

func TestWhatIsWantedIsReadFollowedAndForgotten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "e.pb")
	put(t, path, response(t, "a", "1", "b", "1"))
	changed := make(chan struct{}, 16)
	s := New(Config{Decode: map[string]xdsclient.Decoder{ecds: decode}, OnChange: func() { changed <- struct{}{} }, Settle: 5 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	want := func(what, now string) {
		t.Helper()
		if got := shown(s); got != now {
			t.Errorf("%s: %q, want %q", what, got, now)
		}
	}
	step := func(what string, b []byte, now string) {
		t.Helper()
		put(t, path, b)
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: not noticed", what)
		}
		want(what, now)
	}
	ref := func(names ...string) (out []Ref) {
		for _, n := range names {
			out = append(out, Ref{Key: xdsclient.Key{TypeURL: ecds, Name: n}, Path: path})
		}
		return out
	}
	s.Want(ref("a"))
	want("one by name", "a=1")
	s.Want(ref("a", "b"))
	want("a further one", "a=1 b=1")
	step("a new value", response(t, "a", "2", "b", "1"), "a=2 b=1")
	step("a bad value", response(t, "a", "bad", "b", "3"), "a=2 b=3 rejected a")
	step("a panic", response(t, "a", "panic", "b", "4"), "a=2 b=4 rejected a")
	step("a named one is missing", response(t, "b", "5"), "a=2 b=5 rejected a")
	step("garbage", []byte("\xff"), "a=2 b=5 rejected a broken")
	s.Want(ref(""))
	want("all", "b=5 broken")
	step("all of them", response(t, "b", "5", "c", "1"), "b=5 c=1")
	step("what is gone is removed, what is bad is not", response(t, "c", "bad"), "c=1 rejected c")
	if k := s.ADS(); len(k) != 1 || k[0].Name != "c" {
		t.Errorf("references %v", k)
	}
	s.Want(nil)
	want("nothing", "")
	put(t, path, response(t, "c", "9"))
	select {
	case <-changed:
		t.Error("a file that nobody wants is watched")
	case <-time.After(50 * time.Millisecond):
	}
}

func TestATextFileOfProtocolBuffersIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "e.pb_text")
	put(t, path, []byte("resources {}"))
	s := New(Config{Decode: map[string]xdsclient.Decoder{ecds: decode}})
	s.Want([]Ref{{Key: xdsclient.Key{TypeURL: ecds}, Path: path}})
	if got := shown(s); got != "broken" {
		t.Error(got)
	}
}

// FuzzParse: there is content or an error, and the same bytes give the same.
func FuzzParse(f *testing.F) {
	f.Add("a.yaml", []byte("version_info: x\nresources: [{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a}]"))
	f.Add("a.pb", []byte{})
	f.Add("a.json", []byte(`{"resources": []}`))
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		c, err := parse(name, b)
		if (c == nil) == (err == nil) {
			t.Fatalf("content %v, error %v", c, err)
		}
		again, err2 := parse(name, b)
		if (err == nil) != (err2 == nil) || !reflect.DeepEqual(c, again) {
			t.Errorf("%v, %v, then %v, %v", c, err, again, err2)
		}
	})
}
