import pytest
import torch
from torch import nn

from dim_hf.ema import ema_decay_at, make_teacher, update_teacher


def network(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model(torch.randn(4, 1, 8, 8))
    return model


def test_decay_is_the_weight_of_the_old_value():
    assert ema_decay_at(0, 0.99) == 0
    assert ema_decay_at(10**6, 0.99) == 0.99
    student, teacher = network(0), make_teacher(network(1))
    expected = [0.9 * t + 0.1 * s for t, s in zip(teacher.parameters(), student.parameters(), strict=True)]
    update_teacher(teacher, student, 0.9)
    for parameter, value in zip(teacher.parameters(), expected, strict=True):
        assert torch.allclose(parameter, value, atol=1e-7)


def test_first_update_copies_the_student():
    student, teacher = network(0), make_teacher(network(1))
    update_teacher(teacher, student, ema_decay_at(0, 0.99))
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value)


@pytest.mark.parametrize(("buffers", "share"), [("averaged", 0.1), ("copied", 1.0)])
def test_buffers_follow_the_stated_policy(buffers, share):
    student, teacher = network(0), make_teacher(network(1))
    student[1].num_batches_tracked += 7
    old, new = teacher[1].running_var.clone(), student[1].running_var.clone()
    update_teacher(teacher, student, 0.9, buffers)
    assert torch.allclose(teacher[1].running_var, old + share * (new - old))
    assert teacher[1].num_batches_tracked == student[1].num_batches_tracked


def test_teacher_takes_no_gradient_and_shares_no_memory():
    student = network(0)
    teacher = make_teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.training
    assert all(t.data_ptr() != s.data_ptr() for t, s in zip(teacher.parameters(), student.parameters(), strict=True))


def test_unknown_policy_and_other_networks_are_refused():
    with pytest.raises(ValueError, match="averaged, copied"):
        update_teacher(network(0), network(1), 0.9, "shared")
    with pytest.raises(ValueError, match=r"zip\(\)|differ"):
        update_teacher(network(0), nn.Conv2d(1, 2, 3), 0.9)
