package proxywasm

import (
	"slices"
	"strings"
	"sync"

	"github.com/fairlead-mesh/fairlead/filters"
)

// sharedState is the data and the queues of one vm_id, for all its VMs.
type sharedState struct {
	vmID string
	all  *queues

	mu    sync.Mutex
	data  map[string]sharedValue
	cas   uint32
	bytes int // of data
}

type sharedValue struct {
	value []byte
	cas   uint32
}

type (
	stateKey  struct{ vmID string }
	queuesKey struct{}
)

// queues finds the queues of all vm_ids.
type queues struct {
	mu     sync.Mutex
	tokens map[queueName]uint32
	m      map[uint32]*queue
	last   uint32
}

type queueName struct{ vmID, name string }

// itemSize is what an item takes beside its bytes.
const itemSize = 32

// queue tells the last VM that registered it of what is put in.
type queue struct {
	items   [][]byte
	bytes   int
	vm      *vm
	context uint32
}

// acquireState returns the state of vmID, which lives as long as a VM of it.
func acquireState(shared *filters.Shared, vmID string) (*sharedState, func(), error) {
	q, releaseQueues, err := shared.Acquire(queuesKey{}, func() (any, error) {
		return &queues{tokens: map[queueName]uint32{}, m: map[uint32]*queue{}}, nil
	})
	if err != nil {
		return nil, nil, err
	}
	all, _ := q.(*queues)
	s, release, err := shared.Acquire(stateKey{vmID}, func() (any, error) {
		return &sharedState{vmID: vmID, all: all, data: map[string]sharedValue{}}, nil
	})
	if err != nil {
		releaseQueues()
		return nil, nil, err
	}
	state, _ := s.(*sharedState)
	return state, func() {
		release()
		releaseQueues()
	}, nil
}

// Close implements io.Closer: the queues go with the last VM of their vm_id.
func (s *sharedState) Close() error {
	q := s.all
	q.mu.Lock()
	defer q.mu.Unlock()
	for name, token := range q.tokens {
		if name.vmID == s.vmID {
			delete(q.tokens, name)
			delete(q.m, token)
		}
	}
	return nil
}

func (v *vm) getSharedData(a []uint64) Status {
	key, ok := v.read(a[0], a[1])
	if !ok {
		return StatusInvalidMemoryAccess
	}
	s := v.pool.shared
	s.mu.Lock()
	d, ok := s.data[string(key)]
	s.mu.Unlock()
	if !ok {
		return StatusNotFound
	}
	if st := v.give(d.value, a[2], a[3]); st != StatusOK {
		return st
	}
	if !v.put(a[4], d.cas) {
		return StatusInvalidMemoryAccess
	}
	return StatusOK
}

func (v *vm) setSharedData(a []uint64) Status {
	key, ok1 := v.read(a[0], a[1])
	value, ok2 := v.read(a[2], a[3])
	if !ok1 || !ok2 {
		return StatusInvalidMemoryAccess
	}
	s := v.pool.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	old, there := s.data[string(key)]
	if cas := uint32(a[4]); there && cas != 0 && cas != old.cas {
		return StatusCASMismatch
	}
	grown := len(value) - len(old.value)
	if !there {
		grown += len(key)
	}
	if s.bytes+grown > maxSharedBytes {
		return StatusInternalFailure
	}
	s.bytes += grown
	if s.cas++; s.cas == 0 {
		s.cas = 1
	}
	s.data[string(key)] = sharedValue{slices.Clone(value), s.cas}
	return StatusOK
}

func (v *vm) registerQueue(a []uint64) Status {
	name, ok := v.read(a[0], a[1])
	if !ok {
		return StatusInvalidMemoryAccess
	}
	q := v.pool.shared.all
	q.mu.Lock()
	defer q.mu.Unlock()
	k := queueName{v.pool.cfg.VMID, string(name)}
	token := q.tokens[k]
	if token == 0 {
		for q.last++; q.last == 0 || q.m[q.last] != nil; {
			q.last++
		}
		token = q.last
		q.tokens[k], q.m[token] = token, &queue{}
	}
	q.m[token].vm = v
	q.m[token].context = 0
	if root := v.acting().root; root != nil {
		q.m[token].context = root.id
	}
	if !v.put(a[2], token) {
		return StatusInvalidMemoryAccess
	}
	return StatusOK
}

func (v *vm) resolveQueue(a []uint64) Status {
	vmID, ok1 := v.read(a[0], a[1])
	name, ok2 := v.read(a[2], a[3])
	if !ok1 || !ok2 {
		return StatusInvalidMemoryAccess
	}
	k := queueName{strings.Clone(string(vmID)), string(name)}
	if k.vmID == "" {
		k.vmID = v.pool.cfg.VMID
	}
	q := v.pool.shared.all
	q.mu.Lock()
	token := q.tokens[k]
	q.mu.Unlock()
	if token == 0 {
		return StatusNotFound
	}
	if !v.put(a[4], token) {
		return StatusInvalidMemoryAccess
	}
	return StatusOK
}

func (v *vm) enqueue(a []uint64) Status {
	item, ok := v.read(a[1], a[2])
	if !ok {
		return StatusInvalidMemoryAccess
	}
	all := v.pool.shared.all
	all.mu.Lock()
	defer all.mu.Unlock()
	q := all.m[uint32(a[0])]
	if q == nil {
		return StatusNotFound
	}
	if q.bytes+len(item)+itemSize > maxSharedBytes {
		return StatusInternalFailure
	}
	q.items = append(q.items, slices.Clone(item))
	q.bytes += len(item) + itemSize
	go q.vm.ready(q.context, uint32(a[0]))
	return StatusOK
}

// ready tells the guest that something was put into its queue.
func (v *vm) ready(context, token uint32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if c := v.contexts[context]; c != nil && v.fn.queueReady != nil {
		v.call(v.fn.queueReady, c, uint64(context), uint64(token))
	}
}

func (v *vm) dequeue(a []uint64) Status {
	all := v.pool.shared.all
	all.mu.Lock()
	q := all.m[uint32(a[0])]
	if q == nil || len(q.items) == 0 {
		all.mu.Unlock()
		if q == nil {
			return StatusNotFound
		}
		return StatusEmpty
	}
	item := q.items[0]
	q.items = q.items[1:]
	q.bytes -= len(item) + itemSize
	all.mu.Unlock()
	return v.give(item, a[1], a[2])
}
