package streaminfo

import "testing"

func TestAnAwaitedObjectIsThereOnceItArrived(t *testing.T) {
	for _, came := range []Object{String("x"), nil} {
		var fs, stream FilterState
		a := &Awaited{}
		fs.Set("k", a, SharingOnce)
		stream.Adopt("k", &fs)
		stream.Adopt("absent", &fs)
		stream.Adopt("k", nil)
		for range 2 { // before and after
			want := Object(nil)
			if _, over := a.Object(); over {
				want = came
			}
			for name, s := range map[string]*FilterState{"where it was set": &fs, "where it was adopted": &stream} {
				if got := s.Get("k"); got != want {
					t.Errorf("%s: Get gives %v, want %v", name, got, want)
				}
				seen := 0
				s.All(func(string, Object) bool { seen++; return true })
				if (seen == 1) != (want != nil) {
					t.Errorf("%s: All shows %d objects, want %v", name, seen, want)
				}
				if _, over := a.Object(); s.Awaits("k") == over || s.Awaits("absent") {
					t.Errorf("%s: awaits %v after the arrival %v", name, s.Awaits("k"), over)
				}
			}
			a.Arrive(came)
			a.Arrive(String("late"))
		}
		var hop FilterState
		fs.ShareInto(&hop)
		if got := hop.Get("k"); got != came {
			t.Errorf("across a hop: %v, want %v", got, came)
		}
		stream.Set("k", String("own"), SharingNone)
		stream.Adopt("k", &fs)
		if got := stream.GetString("k"); got != "own" {
			t.Errorf("adopting replaced an object by %q", got)
		}
	}
	if (*FilterState)(nil).Awaits("k") {
		t.Error("nil awaits something")
	}
}
