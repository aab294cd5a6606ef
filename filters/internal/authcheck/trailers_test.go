package authcheck

import (
	"errors"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// trailed is a body of trailers only.
type trailed struct {
	message.Body
	h *message.Header
}

func (b *trailed) Ready() (int, bool)        { return 0, true }
func (b *trailed) Trailers() *message.Header { return b.h }

type stoppable struct {
	trailed
	cause error
}

func (b *stoppable) Interrupt(cause error) { b.cause = cause }

func TestTrailersHoldNothingThatTheServiceDecidesAbout(t *testing.T) {
	a := Answer{Headers: []Header{{Name: "x-user-id", Value: "7"}, {Name: "x-role", Value: "admin", Add: true}, {Name: "x-list", Append: true}}, Remove: []string{"x-secret-key"}}
	b := a.CleanTrailers(&trailed{h: header("x-user-id", "1", "x_user_id", "2", "x_role", "3", "x-list", "4", "x-secret-key", "5", "x_secret-key", "6", "x-checksum", "7")})
	if got := b.Trailers(); got.Len() != 1 || got.Get("x-checksum") != "7" {
		t.Errorf("%+v", got)
	}
	if _, ok := b.(filters.Interrupter); ok {
		t.Error("a body that can't be interrupted says that it can")
	}
	if got := a.CleanTrailers(&trailed{h: header("x-role", "admin")}).Trailers(); got != nil {
		t.Errorf("%+v, want no trailers", got)
	}
	if got := a.CleanTrailers(&trailed{}); got.Trailers() != nil {
		t.Errorf("%+v", got)
	}
	in := &stoppable{trailed: trailed{h: header("x-role", "admin")}}
	i, ok := a.CleanTrailers(in).(filters.Interrupter)
	if !ok {
		t.Fatal("the body can't be interrupted any more")
	}
	cause := errors.New("cause")
	if i.Interrupt(cause); !errors.Is(in.cause, cause) {
		t.Error(in.cause)
	}
	if got := a.CleanTrailers(message.NoBody); got != message.NoBody {
		t.Errorf("%T for no body", got)
	}
	if got := (&Answer{}).CleanTrailers(in); got != message.Body(in) {
		t.Errorf("%T where nothing is to be cleaned", got)
	}
}
